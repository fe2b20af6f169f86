#include "generate_case.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "error.hpp"

namespace tessera::cli {
namespace {

// Streams of the generator, one for each tensor.
enum Stream : std::uint64_t { kQ, kK, kV, kBias, kMask, kSink, kDO, kDLse };

using Sizes = std::vector<std::int64_t>;

Sizes token_sizes(const CaseShape& s, std::int64_t heads, std::int64_t seq, std::int64_t last) {
  if (s.packed) return {s.batch * seq, heads, last};
  if (s.bshd) return {s.batch, seq, heads, last};
  return {s.batch, heads, seq, last};
}

// Sequence b of a packed batch has a share of b + 1 parts of all tokens: the lengths differ, and
// the first ones are short.
std::int64_t packed_begin(const CaseShape& s, std::int64_t seq, std::int64_t b) {
  const double share = (b * (b + 1.0)) / (s.batch * (s.batch + 1.0));
  return b == 0 ? 0 : static_cast<std::int64_t>(share * static_cast<double>(s.batch * seq));
}

std::int64_t longest(const CaseShape& s, std::int64_t seq) {
  if (!s.packed) return seq;
  if (s.batch == 0) return 0;
  return s.batch * seq - packed_begin(s, seq, s.batch - 1);
}

struct TensorSpec {
  bool present;
  DType dtype;
  Sizes sizes;
};

// In the order of kOptionalInputs.
std::array<TensorSpec, kOptionalInputs.size()> optional_specs(const CaseShape& s) {
  const Sizes per_batch = {s.batch};
  const Sizes starts = {s.batch + 1};
  const std::int64_t rows = longest(s, s.seq_q);
  const std::int64_t keys = longest(s, s.seq_kv);
  return {{{s.bias, s.dtype, {1, s.heads_q, rows, keys}},
           {s.mask, DType::boolean, {s.batch, 1, rows, keys}},
           {s.alibi, DType::f32, {s.heads_q}},
           {s.sink, DType::f32, {s.heads_q}},
           {s.q_lens, DType::i32, per_batch},
           {s.kv_lens, DType::i32, per_batch},
           {s.packed, DType::i32, starts},
           {s.packed, DType::i32, starts}}};
}

TensorView view_without_data(DType dtype, const Sizes& sizes) {
  TensorView view;
  view.dtype = dtype;
  view.rank = static_cast<int>(sizes.size());
  std::uint64_t stride = 1;  // may wrap: the library refuses such sizes
  for (int d = view.rank - 1; d >= 0; --d) {
    view.size[d] = sizes[d];
    view.stride[d] = static_cast<std::int64_t>(stride);
    stride *= static_cast<std::uint64_t>(std::max<std::int64_t>(sizes[d], 1));
  }
  return view;
}

// Four in five elements attend; row 0 of the first sequence has nothing to attend to.
void fill_mask(HostTensor& mask, std::uint64_t seed) {
  HostTensor noise(DType::f32, mask.sizes());
  noise.fill_normal(seed, kMask);
  constexpr double kLowestFifth = -0.8416;
  const std::int64_t columns = mask.size(mask.rank() - 1);
  for (std::int64_t i = 0; i < mask.elements(); ++i) {
    mask.as<std::uint8_t>()[i] = i >= columns && noise.at(i) > kLowestFifth;
  }
}

// Full, then shorter and shorter, down to nothing in the last of several sequences.
void fill_lengths(HostTensor& lengths, const CaseShape& s, std::int64_t seq) {
  for (std::int64_t b = 0; b < s.batch; ++b) {
    const std::int64_t rows =
        s.packed ? packed_begin(s, seq, b + 1) - packed_begin(s, seq, b) : seq;
    const std::int64_t steps = std::max<std::int64_t>(s.batch - 1, 1);
    lengths.as<std::int32_t>()[b] = static_cast<std::int32_t>(rows - rows * b / steps);
  }
}

// Rows that no kernel may read: keys of a sequence from its used length on.
void poison_unused_keys(AttentionCase& c, const CaseShape& s, HostTensor& tensor) {
  const std::int64_t last = tensor.sizes().back();
  const auto poison_row = [&](std::int64_t row) {
    for (std::int64_t d = 0; d < last; ++d) {
      tensor.set(row * last + d, std::numeric_limits<double>::quiet_NaN());
    }
  };
  for (std::int64_t b = 0; b < s.batch; ++b) {
    const std::int64_t begin = s.packed ? packed_begin(s, s.seq_kv, b) : 0;
    const std::int64_t end = s.packed ? packed_begin(s, s.seq_kv, b + 1) : s.seq_kv;
    for (std::int64_t j = begin + c.kv_lens.as<std::int32_t>()[b]; j < end; ++j) {
      for (std::int64_t h = 0; h < s.heads_kv; ++h) {
        if (s.packed) {
          poison_row(j * s.heads_kv + h);
        } else if (s.bshd) {
          poison_row((b * s.seq_kv + j) * s.heads_kv + h);
        } else {
          poison_row((b * s.heads_kv + h) * s.seq_kv + j);
        }
      }
    }
  }
}

void fill_optional(AttentionCase& c, const CaseShape& s, std::uint64_t seed) {
  if (s.bias) c.bias.fill_normal(seed, kBias);
  if (s.mask) fill_mask(c.mask, seed);
  if (s.sink) c.sink.fill_normal(seed, kSink);
  for (std::int64_t h = 0; s.alibi && h < s.heads_q; ++h) {
    c.alibi_slopes.set(h, std::exp2(-8.0 * (h + 1) / s.heads_q));
  }
  for (std::int64_t b = 0; s.packed && b <= s.batch; ++b) {
    c.cu_seqlens_q.as<std::int32_t>()[b] = static_cast<std::int32_t>(packed_begin(s, s.seq_q, b));
    c.cu_seqlens_k.as<std::int32_t>()[b] = static_cast<std::int32_t>(packed_begin(s, s.seq_kv, b));
  }
  if (s.q_lens) fill_lengths(c.q_lens, s, s.seq_q);
  if (s.kv_lens) {
    fill_lengths(c.kv_lens, s, s.seq_kv);
    poison_unused_keys(c, s, c.k);
    poison_unused_keys(c, s, c.v);
  }
}

}  // namespace

CaseShape to_case_shape(const ShapeFlags& flags, const FeatureFlags& features,
                        const std::string& layout, DType dtype) {
  CaseShape s;
  s.name = "shape";
  s.dtype = dtype;
  s.batch = flags.batch.value_or(s.batch);
  s.heads_q = flags.heads.value_or(s.heads_q);
  s.heads_kv = flags.heads_kv.value_or(s.heads_q);
  s.seq_q = flags.seq.value_or(s.seq_q);
  s.seq_kv = flags.seq_kv.value_or(s.seq_q);
  s.head_dim = flags.head_dim.value_or(s.head_dim);
  s.head_dim_v = flags.head_dim_v.value_or(s.head_dim);
  const auto with = [&](const char* name) {
    return std::find(flags.with.begin(), flags.with.end(), name) != flags.with.end();
  };
  s.bshd = layout == "bshd";
  s.bias = with("bias");
  s.mask = with("mask");
  s.alibi = with("alibi");
  s.sink = with("sink");
  s.q_lens = with("q-lens");
  s.kv_lens = with("kv-lens");
  s.packed = with("varlen");
  s.block_mask = with("block-mask");
  s.d_lse = with("dlse");
  s.block = to_block_size(features);
  s.density = flags.density.value_or(s.density);
  if (!s.block_mask && !features.block_size.empty()) {
    fail("--block-size: {}, expected --with block-mask to go with it", features.block_size);
  }
  if (!s.block_mask && flags.density) {
    fail("--density: {}, expected --with block-mask to go with it", *flags.density);
  }
  if (!(s.density > 0 && s.density <= 1)) {
    fail("--density: {}, expected a number in (0, 1]", s.density);
  }
  return s;
}

AttentionCase generate_case(const CaseShape& shape, const Attention& attention, std::uint64_t seed,
                            std::uint64_t offset, bool backward) {
  AttentionCase c;
  c.name = shape.name;
  c.attention = attention;
  c.seed = seed;
  c.offset = offset;
  c.bshd = shape.bshd && !shape.packed;
  const auto normal = [&](Sizes sizes, DType dtype, Stream stream) {
    HostTensor tensor(dtype, std::move(sizes));
    tensor.fill_normal(seed, stream);
    return tensor;
  };
  const auto tokens = [&](std::int64_t heads, std::int64_t seq, std::int64_t last, Stream stream) {
    return normal(token_sizes(shape, heads, seq, last), shape.dtype, stream);
  };
  c.q = tokens(shape.heads_q, shape.seq_q, shape.head_dim, kQ);
  c.k = tokens(shape.heads_kv, shape.seq_kv, shape.head_dim, kK);
  c.v = tokens(shape.heads_kv, shape.seq_kv, shape.head_dim_v, kV);
  const auto specs = optional_specs(shape);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (!specs[i].present) continue;
    c.*kOptionalInputs[i].tensor = HostTensor(specs[i].dtype, specs[i].sizes);
  }
  fill_optional(c, shape, seed);
  if (shape.block_mask) {
    const BlockShape blocks{longest(shape, shape.seq_q), longest(shape, shape.seq_kv),
                            shape.block.q, shape.block.kv};
    c.set_block_mask(require(BlockMask::random(blocks, 1, shape.heads_q, shape.density, seed)));
  }
  if (backward) c.d_o = tokens(shape.heads_q, shape.seq_q, shape.head_dim_v, kDO);
  if (backward && shape.d_lse) c.d_lse = normal(c.lse_sizes(), c.lse_dtype(), kDLse);
  return c;
}

Inputs describe_case(const CaseShape& shape, BlockMaskView& block_mask) {
  const auto tokens = [&](std::int64_t heads, std::int64_t seq, std::int64_t last) {
    const TensorView view = view_without_data(shape.dtype, token_sizes(shape, heads, seq, last));
    return shape.bshd && !shape.packed ? view.transposed(1, 2) : view;
  };
  Inputs inputs;
  inputs.q = tokens(shape.heads_q, shape.seq_q, shape.head_dim);
  inputs.k = tokens(shape.heads_kv, shape.seq_kv, shape.head_dim);
  inputs.v = tokens(shape.heads_kv, shape.seq_kv, shape.head_dim_v);
  const auto specs = optional_specs(shape);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (!specs[i].present) continue;
    inputs.*kOptionalInputs[i].view = view_without_data(specs[i].dtype, specs[i].sizes);
  }
  if (shape.block_mask) {
    const BlockShape blocks{longest(shape, shape.seq_q), longest(shape, shape.seq_kv),
                            shape.block.q, shape.block.kv};
    block_mask.batch = 1;
    block_mask.heads = shape.heads_q;
    block_mask.seq_q = blocks.seq_q;
    block_mask.seq_kv = blocks.seq_kv;
    block_mask.block_q = blocks.block_q;
    block_mask.block_kv = blocks.block_kv;
    block_mask.q_blocks = blocks.q_blocks();
    block_mask.kv_blocks = blocks.kv_blocks();
    const double all = static_cast<double>(shape.heads_q) * block_mask.q_blocks *
                       static_cast<double>(block_mask.kv_blocks);
    block_mask.entries = static_cast<std::int64_t>(std::min(shape.density * all, 0x1p62));
    inputs.block_mask = &block_mask;
  }
  return inputs;
}

}  // namespace tessera::cli
