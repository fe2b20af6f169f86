#include "flags.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

#include "device/device.hpp"
#include "error.hpp"

namespace tessera::cli {
namespace {

constexpr std::int64_t kMaxSize = std::numeric_limits<std::int32_t>::max();
constexpr int kMaxThreads = 4096;

template <typename T>
std::optional<T> parse(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

CLI::Validator unsigned_integer() {
  return CLI::Validator(
      [](const std::string& text) {
        return parse<std::uint64_t>(text)
                   ? std::string()
                   : fmt::format("{}, expected an integer of 0 to 2^64 − 1", text);
      },
      "");
}

Alignment to_alignment(const std::string& name) {
  return name == "top-left" ? Alignment::top_left : Alignment::bottom_right;
}

Window to_window(const std::string& text) {
  const std::size_t comma = text.find(',');
  if (comma != std::string::npos) {
    const auto left = parse<std::int64_t>(std::string_view(text).substr(0, comma));
    const auto right = parse<std::int64_t>(std::string_view(text).substr(comma + 1));
    if (left && right) return {*left, *right};
  }
  fail("--window: {}, expected L,R: two integers, −1 for an unbounded side", text);
}

}  // namespace

CLI::Validator integer(std::int64_t low, std::int64_t high) {
  return CLI::Validator(
      [low, high](const std::string& text) {
        const std::optional<std::int64_t> value = parse<std::int64_t>(text);
        return value && *value >= low && *value <= high
                   ? std::string()
                   : fmt::format("{}, expected an integer of {} to {}", text, low, high);
      },
      "");
}

CLI::Validator number() {
  return CLI::Validator(
      [](const std::string& text) {
        return parse<double>(text) ? std::string() : fmt::format("{}, expected a number", text);
      },
      "");
}

CLI::Validator one_of(std::vector<std::string> names) {
  const std::string listed = fmt::format("{}", fmt::join(names, "|"));
  return CLI::Validator(
      [names = std::move(names), listed](const std::string& text) {
        return std::find(names.begin(), names.end(), text) != names.end()
                   ? std::string()
                   : fmt::format("{}, expected {}", text, listed);
      },
      listed);
}

void add_feature_flags(CLI::App& command, FeatureFlags& flags) {
  const std::string group = "What to compute";
  command.add_option("--scale", flags.scale, "Factor of q·k (default 1/sqrt(D))")
      ->check(number())
      ->type_name("X")
      ->group(group);
  command
      .add_flag("--causal{bottom-right}", flags.causal,
                "Causal mask; --causal=top-left lets query 0 stand at key 0 instead of the last "
                "query at the last key")
      ->check(one_of({"bottom-right", "top-left"}))
      ->group(group);
  command
      .add_option("--alignment", flags.alignment,
                  "How queries line up with keys, for windows and ALiBi, too")
      ->check(one_of({"bottom-right", "top-left"}))
      ->group(group);
  command
      .add_option("--window", flags.window,
                  "Sliding window: keys from L before to R after the query's position; −1 is "
                  "unbounded")
      ->type_name("L,R")
      ->group(group);
  command.add_option("--softcap", flags.softcap, "c > 0: scores become c·tanh(s/c)")
      ->check(number())
      ->type_name("X")
      ->group(group);
  command.add_option("--dropout", flags.dropout, "Probability of dropping a softmax element")
      ->check(number())
      ->type_name("X")
      ->group(group);
  command.add_option("--seed", flags.seed, "Seed of dropout, and of generated data")
      ->check(unsigned_integer())
      ->type_name("N")
      ->group(group);
  command.add_option("--offset", flags.offset, "Offset of dropout's random stream")
      ->check(unsigned_integer())
      ->type_name("N")
      ->group(group);
  command
      .add_option("--block-size", flags.block_size,
                  "Rows M and keys N of the block mask's blocks, multiples of 16 (default 128)")
      ->type_name("M[,N]")
      ->group(group);
  command
      .add_flag("--deterministic", flags.deterministic,
                "Ask for a backward pass whose results are the same bits every time")
      ->group(group);
}

Attention to_attention(const FeatureFlags& flags) {
  Attention attention;
  attention.scale = flags.scale;
  attention.causal = !flags.causal.empty();
  if (!flags.causal.empty() && !flags.alignment.empty() && flags.causal != flags.alignment) {
    fail("--alignment: {}, expected --causal's {}", flags.alignment, flags.causal);
  }
  attention.alignment = to_alignment(flags.causal.empty() ? flags.alignment : flags.causal);
  if (!flags.window.empty()) attention.window = to_window(flags.window);
  attention.softcap = flags.softcap;
  attention.dropout_p = flags.dropout;
  attention.deterministic = flags.deterministic;
  return attention;
}

BlockSize to_block_size(const FeatureFlags& flags) {
  if (flags.block_size.empty()) return {};
  const std::string_view text = flags.block_size;
  const std::size_t comma = std::min(text.find(','), text.size());
  const auto q = parse<std::int64_t>(text.substr(0, comma));
  const auto kv = comma == text.size() ? q : parse<std::int64_t>(text.substr(comma + 1));
  const auto good = [](const std::optional<std::int64_t>& size) {
    return size && *size > 0 && *size % 16 == 0 && *size <= kMaxSize;
  };
  if (!good(q) || !good(kv)) {
    fail("--block-size: {}, expected M or M,N, positive multiples of 16", text);
  }
  return {*q, *kv};
}

bool FeatureFlags::given() const {
  return scale || !causal.empty() || !alignment.empty() || !window.empty() || softcap != 0 ||
         dropout != 0 || !block_size.empty() || deterministic;
}

bool FileFlags::given() const {
  for (const std::string* file : {&q, &k, &v, &bias, &mask, &alibi, &sink, &q_lens, &kv_lens,
                                  &cu_seqlens_q, &cu_seqlens_k, &block_mask}) {
    if (!file->empty()) return true;
  }
  return false;
}

void add_file_flags(CLI::App& command, FileFlags& flags) {
  const std::string group = "Tensors: FILE.npy or FILE.safetensors:NAME";
  const auto file = [&](const char* flag, std::string& value, const char* help) {
    command.add_option(flag, value, help)->type_name("FILE")->group(group);
  };
  file("--q", flags.q, "Queries [B,Hq,Sq,D]; [Tq,Hq,D] with --cu-seqlens-q and -k");
  file("--k", flags.k, "Keys [B,Hkv,Skv,D]; [Tk,Hkv,D]");
  file("--v", flags.v, "Values [B,Hkv,Skv,Dv]; [Tk,Hkv,Dv]");
  command.add_option("--layout", flags.layout, "Order of q's dimensions and of all like it")
      ->check(one_of({"bhsd", "bshd"}))
      ->group(group);
  command
      .add_option("--dtype", flags.dtype,
                  "Dtype of the computation, to which q, k, v are rounded on load (default q's "
                  "own; f64 runs on the reference only)")
      ->check(one_of({"f32", "f16", "bf16", "f64"}))
      ->group(group);
  file("--bias", flags.bias,
       "Added to the scores: [B|1,Hq|1,Sq|1,Skv], leading 1s may be left out");
  file("--mask", flags.mask,
       "bool, true = attend: [B|1,Hq|1,Sq|1,Skv], leading 1s may be left out");
  file("--alibi", flags.alibi, "ALiBi slopes [Hq] or [B,Hq]");
  file("--sink", flags.sink, "Sink logits [Hq]");
  file("--q-lens", flags.q_lens, "Used query rows of each sequence [B]");
  file("--kv-lens", flags.kv_lens, "Used keys of each sequence [B]");
  file("--cu-seqlens-q", flags.cu_seqlens_q,
       "First token of each packed sequence, and the end [B+1]");
  file("--cu-seqlens-k", flags.cu_seqlens_k, "The same for keys");
  file("--block-mask", flags.block_mask,
       "bool, true = visit the block: [nq,nk], [Hq|1,nq,nk] or [B|1,Hq|1,nq,nk]");
}

bool ShapeFlags::given() const {
  return batch || heads || heads_kv || seq || seq_kv || head_dim || head_dim_v || density ||
         !with.empty();
}

void add_shape_flags(CLI::App& command, ShapeFlags& flags) {
  const std::string group = "Shapes, instead of files";
  const auto size = [&](const char* flag, std::optional<std::int64_t>& value, const char* help) {
    command.add_option(flag, value, help)
        ->check(integer(0, kMaxSize))
        ->type_name("N")
        ->group(group);
  };
  size("-B,--batch", flags.batch, "Sequences (default 1)");
  size("--heads", flags.heads, "Query heads (default 4)");
  size("--heads-kv", flags.heads_kv, "Key and value heads (default: as --heads)");
  size("--seq", flags.seq, "Query rows (default 512)");
  size("--seq-kv", flags.seq_kv, "Keys (default: as --seq)");
  size("--head-dim", flags.head_dim, "Head dim of q and k (default 64)");
  size("--head-dim-v", flags.head_dim_v, "Head dim of v (default: as --head-dim)");
  command
      .add_option("--with", flags.with,
                  "Tensors to go with them, separated by commas: bias, mask, alibi, sink, q-lens, "
                  "kv-lens, varlen, block-mask, dlse")
      ->delimiter(',')
      ->check(one_of(
          {"bias", "mask", "alibi", "sink", "q-lens", "kv-lens", "varlen", "block-mask", "dlse"}))
      ->type_name("LIST")
      ->group(group);
  command.add_option("--density", flags.density, "Share of blocks that the block mask lists")
      ->check(number())
      ->type_name("X")
      ->group(group);
}

void add_place_flags(CLI::App& command, PlaceFlags& flags, bool with_implementation) {
  const std::string group = "Where to run";
  command.add_option("--device", flags.device, "cpu, cuda or cuda:N (default cpu)")
      ->type_name("DEVICE")
      ->group(group);
  command.add_option("--threads", flags.threads, "Threads (default: one per CPU)")
      ->check(integer(1, kMaxThreads))
      ->type_name("N")
      ->group(group);
  if (with_implementation) {
    command.add_option("--impl", flags.implementation, "Row of the table to use (see info)")
        ->type_name("ROW")
        ->group(group);
  }
}

Device to_device(const std::string& name) {
  constexpr std::string_view kCuda = "cuda:";
  if (name == "cpu") return {};
  std::optional<int> index;
  if (name == "cuda") index = 0;
  if (name.starts_with(kCuda)) index = parse<int>(std::string_view(name).substr(kCuda.size()));
  if (index && *index >= 0 && *index < device::count(DeviceType::cuda)) {
    return {DeviceType::cuda, *index};
  }
  std::string known;
  for (const std::string& line : describe_devices()) {
    known += (known.empty() ? "" : "; ") + line;
  }
  fail("--device: {}, expected cpu or cuda[:N] (this machine: {})", name, known);
}

std::unique_ptr<Executor> make_executor(const PlaceFlags& flags) {
  return flags.threads > 0 ? make_thread_pool(flags.threads) : nullptr;
}

DType to_dtype(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64, DType::i32}) {
    if (name == name_of(dtype)) return dtype;
  }
  return DType::boolean;
}

}  // namespace tessera::cli
