#include "bench/problem.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <utility>

namespace tessera::cli::bench {
namespace {

constexpr std::array<std::pair<Pattern, const char*>, 5> kPatternNames{{
    {Pattern::dense, "dense"},
    {Pattern::butterfly, "butterfly"},
    {Pattern::local_global, "local_global"},
    {Pattern::strided, "strided"},
    {Pattern::random, "random"},
}};

std::string pair_label(std::int64_t a, std::int64_t b) {
  return a == b ? fmt::format("{}", a) : fmt::format("{}/{}", a, b);
}

}  // namespace

const char* name_of(Pass pass) { return pass == Pass::forward ? "forward" : "backward"; }

const char* name_of(Pattern pattern) {
  for (const auto& [value, name] : kPatternNames) {
    if (value == pattern) return name;
  }
  return "";
}

std::optional<Pattern> pattern_named(std::string_view name) {
  for (const auto& [value, known] : kPatternNames) {
    if (name == known) return value;
  }
  return std::nullopt;
}

Attention to_attention(const Case& problem, Precision precision) {
  Attention attention;
  attention.precision = precision;
  attention.causal = problem.causal;
  attention.window = problem.window;
  return attention;
}

std::int64_t input_output_bytes(const Case& problem) {
  const Case& p = problem;
  const std::int64_t q = p.batch * p.heads_q * p.seq_q * p.head_dim;
  const std::int64_t o = p.batch * p.heads_q * p.seq_q * p.head_dim_v;
  const std::int64_t k = p.batch * p.heads_kv * p.seq_kv * p.head_dim;
  const std::int64_t v = p.batch * p.heads_kv * p.seq_kv * p.head_dim_v;
  const std::int64_t forward = (q + k + v + o) * size_of(p.dtype);
  if (p.pass == Pass::forward) return forward;
  const std::int64_t lse = p.batch * p.heads_q * p.seq_q * size_of(DType::f32);
  return 2 * forward + lse;
}

KeyRange visible_keys(const Case& problem, std::int64_t i) {
  const Case& p = problem;
  const std::int64_t position = i + p.seq_kv - p.seq_q;
  KeyRange keys{0, p.seq_kv};
  if (p.window.left >= 0) keys.begin = std::max(keys.begin, position - p.window.left);
  if (p.window.right >= 0) keys.end = std::min(keys.end, position + p.window.right + 1);
  if (p.causal) keys.end = std::min(keys.end, position + 1);
  keys.begin = std::min(keys.begin, p.seq_kv);
  keys.end = std::max(keys.end, keys.begin);
  return keys;
}

double visible_pairs(const Case& problem) {
  const Case& p = problem;
  const double heads = static_cast<double>(p.batch) * static_cast<double>(p.heads_q);
  const bool windowed = p.window.left >= 0 || p.window.right >= 0;
  if (!windowed && (!p.causal || p.seq_q == p.seq_kv)) {
    const double all = heads * static_cast<double>(p.seq_q) * static_cast<double>(p.seq_kv);
    return p.causal ? all / 2 : all;
  }
  double pairs = 0;
  for (std::int64_t i = 0; i < p.seq_q; ++i) {
    const KeyRange keys = visible_keys(p, i);
    pairs += static_cast<double>(keys.end - keys.begin);
  }
  return heads * pairs;
}

double listed_pairs(const Case& problem, const BlockMaskView& mask) {
  double pairs = 0;
  const std::int64_t rows = mask.batch * mask.heads * mask.q_blocks;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t block = r % mask.q_blocks;
    const std::int64_t height = std::min(mask.block_q, mask.seq_q - block * mask.block_q);
    std::int64_t width = 0;
    for (std::int64_t e = mask.row_offsets[r]; e < mask.row_offsets[r + 1]; ++e) {
      width += std::min(mask.block_kv, mask.seq_kv - mask.columns[e] * mask.block_kv);
    }
    pairs += static_cast<double>(height) * static_cast<double>(width);
  }
  const double copies = static_cast<double>(problem.batch * problem.heads_q) /
                        static_cast<double>(mask.batch * mask.heads);
  return pairs * copies;
}

double flop_count(const Case& problem, double pairs) {
  const double forward = 2.0 * static_cast<double>(problem.head_dim + problem.head_dim_v) * pairs;
  return problem.pass == Pass::forward ? forward : 2.5 * forward;
}

std::string shape_label(const Case& problem) {
  const Case& p = problem;
  return fmt::format("{}x{}x{}x{}", p.batch, pair_label(p.heads_q, p.heads_kv),
                     pair_label(p.seq_q, p.seq_kv), pair_label(p.head_dim, p.head_dim_v));
}

std::string mask_label(const Case& problem, const MaskChoice& mask) {
  if (mask.pattern != Pattern::dense) return name_of(mask.pattern);
  std::string label = problem.causal ? "causal" : "";
  if (problem.window.left >= 0 || problem.window.right >= 0) {
    label += fmt::format("{}window {},{}", label.empty() ? "" : " ", problem.window.left,
                         problem.window.right);
  }
  return label.empty() ? "dense" : label;
}

}  // namespace tessera::cli::bench
