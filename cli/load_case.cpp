#include "load_case.hpp"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "error.hpp"
#include "io/npy.hpp"

namespace tessera::cli {
namespace {

constexpr std::string_view kSafetensors = ".safetensors";

// "x.safetensors:layer0.q" → the file and the tensor's name.
std::optional<std::pair<std::string, std::string>> split_source(const std::string& source) {
  const std::size_t at = source.find(std::string(kSafetensors) + ":");
  if (at == std::string::npos) return std::nullopt;
  const std::size_t colon = at + kSafetensors.size();
  return std::pair(source.substr(0, colon), source.substr(colon + 1));
}

// [S, S] stands for [1, 1, S, S], as in NumPy's broadcasting.
HostTensor with_leading_ones(HostTensor tensor) {
  std::vector<std::int64_t> sizes = tensor.sizes();
  sizes.insert(sizes.begin(), static_cast<std::size_t>(kMaxRank - tensor.rank()), 1);
  tensor.reshape(std::move(sizes));
  return tensor;
}

// f32 biases stay f32 beside f16 and bf16: the library reads both, and rounding would lose bits.
DType bias_dtype(DType file, DType computation) {
  return file == DType::f32 && computation != DType::f64 ? DType::f32 : computation;
}

std::int64_t longest(const HostTensor& cu_seqlens) {
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b + 1 < cu_seqlens.elements(); ++b) {
    const auto* starts = cu_seqlens.as<std::int32_t>();
    longest = std::max(longest, std::int64_t{starts[b + 1]} - starts[b]);
  }
  return longest;
}

BlockMask load_block_mask(const std::string& source, const BlockSize& block, std::int64_t seq_q,
                          std::int64_t seq_kv, TensorFiles& files) {
  const HostTensor blocks = files.load("--block-mask", source, DType::boolean);
  const BlockShape shape{seq_q, seq_kv, block.q, block.kv};
  const std::vector<std::int64_t>& sizes = blocks.sizes();
  const int rank = blocks.rank();
  if (rank < 2 || sizes[rank - 2] != shape.q_blocks() || sizes[rank - 1] != shape.kv_blocks()) {
    fail(
        "--block-mask {}: shape {}, expected [nq, nk], [H, nq, nk] or [B, H, nq, nk] with nq {} "
        "and nk {} (blocks of {}x{} over {}x{})",
        source, sizes_to_string(sizes), shape.q_blocks(), shape.kv_blocks(), block.q, block.kv,
        seq_q, seq_kv);
  }
  const std::int64_t heads = rank >= 3 ? sizes[rank - 3] : 1;
  const std::int64_t batch = rank == 4 ? sizes[0] : 1;
  return require(BlockMask::from_blocks(
      shape, batch, heads,
      std::span(blocks.as<std::uint8_t>(), static_cast<std::size_t>(blocks.elements()))));
}

void check_files(const FileFlags& flags) {
  for (const auto& [flag, source] :
       {std::pair{"--q", &flags.q}, std::pair{"--k", &flags.k}, std::pair{"--v", &flags.v}}) {
    if (source->empty()) fail("{}: absent, expected FILE.npy or FILE.safetensors:NAME", flag);
  }
  if (flags.cu_seqlens_q.empty() != flags.cu_seqlens_k.empty()) {
    fail("--cu-seqlens-{}: absent, expected both cu_seqlens or neither",
         flags.cu_seqlens_q.empty() ? "q" : "k");
  }
  if (!flags.cu_seqlens_q.empty() && flags.layout != "bhsd") {
    fail("--layout: {}, expected none with --cu-seqlens-q: packed tensors are [T, H, D]",
         flags.layout);
  }
}

}  // namespace

TensorFiles::OpenFile& TensorFiles::open(const std::string& flag, const std::string& path) {
  auto found = files_.find(path);
  if (found == files_.end()) {
    try {
      found = files_.emplace(path, OpenFile{MappedFile(path), std::nullopt}).first;
    } catch (const Error& error) {
      fail("{} {}", flag, error.what());
    }
  }
  return found->second;
}

const Safetensors& TensorFiles::index_of(const std::string& flag, const std::string& path) {
  OpenFile& file = open(flag, path);
  if (!file.index) {
    Result<Safetensors> index = Safetensors::parse(file.file.bytes());
    if (!index.ok()) fail("{} {}: {}", flag, path, index.status().message());
    file.index = std::move(index).value();
  }
  return *file.index;
}

std::vector<std::string> TensorFiles::names(const std::string& flag, const std::string& path) {
  return index_of(flag, path).names();
}

ArrayView TensorFiles::find(const std::string& flag, const std::string& source) {
  const auto named = split_source(source);
  if (!named) {
    if (source.ends_with(kSafetensors)) {
      fail("{} {}: expected FILE.safetensors:NAME, the tensor's name after a colon", flag, source);
    }
    const Result<ArrayView> array = parse_npy(open(flag, source).file.bytes());
    if (!array.ok()) fail("{} {}: {}", flag, source, array.status().message());
    return array.value();
  }
  const Result<ArrayView> array = index_of(flag, named->first).tensor(named->second);
  if (!array.ok()) fail("{} {}: {}", flag, source, array.status().message());
  return array.value();
}

HostTensor TensorFiles::load(const std::string& flag, const std::string& source, DType dtype) {
  Result<HostTensor> tensor = to_host_tensor(find(flag, source), dtype);
  if (!tensor.ok()) fail("{} {}: {}", flag, source, tensor.status().message());
  return std::move(tensor).value();
}

DType TensorFiles::dtype_of(const std::string& flag, const std::string& source) {
  switch (find(flag, source).type) {
    case ElementType::f16:
      return DType::f16;
    case ElementType::bf16:
      return DType::bf16;
    case ElementType::f64:
      return DType::f64;
    default:
      return DType::f32;
  }
}

AttentionCase load_case(const FileFlags& flags, const FeatureFlags& features, TensorFiles& files) {
  check_files(flags);
  AttentionCase c;
  c.name = "files";
  c.attention = to_attention(features);
  c.seed = features.seed;
  c.offset = features.offset;
  c.bshd = flags.layout == "bshd";
  const DType dtype = flags.dtype.empty() ? files.dtype_of("--q", flags.q) : to_dtype(flags.dtype);
  c.q = files.load("--q", flags.q, dtype);
  c.k = files.load("--k", flags.k, dtype);
  c.v = files.load("--v", flags.v, dtype);
  const auto optional = [&](const char* flag, const std::string& source, DType as) {
    return source.empty() ? HostTensor() : files.load(flag, source, as);
  };
  if (!flags.bias.empty()) {
    const DType as = bias_dtype(files.dtype_of("--bias", flags.bias), dtype);
    HostTensor bias = files.load("--bias", flags.bias, as);
    c.bias_sizes = bias.sizes();
    c.bias = with_leading_ones(std::move(bias));
  }
  if (!flags.mask.empty()) {
    c.mask = with_leading_ones(files.load("--mask", flags.mask, DType::boolean));
  }
  c.alibi_slopes = optional("--alibi", flags.alibi, DType::f32);
  c.sink = optional("--sink", flags.sink, DType::f32);
  c.q_lens = optional("--q-lens", flags.q_lens, DType::i32);
  c.kv_lens = optional("--kv-lens", flags.kv_lens, DType::i32);
  c.cu_seqlens_q = optional("--cu-seqlens-q", flags.cu_seqlens_q, DType::i32);
  c.cu_seqlens_k = optional("--cu-seqlens-k", flags.cu_seqlens_k, DType::i32);
  if (!flags.block_mask.empty()) {
    // q and k of a wrong rank are the library's to refuse: only read their lengths if they exist.
    const auto length = [&](const HostTensor& tensor, const HostTensor& cu_seqlens) {
      if (cu_seqlens.present()) return longest(cu_seqlens);
      return tensor.rank() == 4 ? tensor.size(c.bshd ? 1 : 2) : 0;
    };
    c.set_block_mask(load_block_mask(flags.block_mask, to_block_size(features),
                                     length(c.q, c.cu_seqlens_q), length(c.k, c.cu_seqlens_k),
                                     files));
  } else if (!features.block_size.empty()) {
    fail("--block-size: {}, expected --block-mask to go with it", features.block_size);
  }
  return c;
}

}  // namespace tessera::cli
