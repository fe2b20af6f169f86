// A pairwise sweep: every pair of settings of any two features occurs in some case.
#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <set>
#include <utility>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

enum Factor {
  kDtype,
  kLengths,
  kHeadDim,
  kHeads,
  kPosition,
  kBias,
  kMask,
  kAlibi,
  kSoftcap,
  kSink,
  kDropout,
  kUsedLengths,
  kBlocks,
  kLayout,
  kLogits,
  kLseGradient,
  kScale,
  kFactors
};

/// How many settings each factor has; `to_case` gives them their meaning.
constexpr std::array<int, kFactors> kLevels = {3, 9, 8, 3, 7, 5, 4, 3, 2, 2, 2, 4, 6, 5, 3, 2, 2};
using Settings = std::array<int, kFactors>;

/// Greedy covering array: each new case is the best of some random ones, then improved factor by
/// factor, until no pair is left. The same on every machine.
std::vector<Settings> covering_array() {
  std::set<std::array<int, 4>> missing;
  for (int f = 0; f < kFactors; ++f) {
    for (int g = f + 1; g < kFactors; ++g) {
      for (int x = 0; x < kLevels[f]; ++x) {
        for (int y = 0; y < kLevels[g]; ++y) missing.insert({f, g, x, y});
      }
    }
  }
  const auto covered_by = [&](const Settings& s) {
    int count = 0;
    for (int f = 0; f < kFactors; ++f) {
      for (int g = f + 1; g < kFactors; ++g)
        count += static_cast<int>(missing.count({f, g, s[f], s[g]}));
    }
    return count;
  };
  std::vector<Settings> rows;
  Random random(2024);
  while (!missing.empty()) {
    Settings best{};
    int best_count = -1;
    for (int attempt = 0; attempt < 8; ++attempt) {
      Settings s;
      for (int f = 0; f < kFactors; ++f) s[f] = static_cast<int>(random.below(kLevels[f]));
      const auto& seed = *missing.begin();
      s[seed[0]] = seed[2];
      s[seed[1]] = seed[3];
      int count = covered_by(s);
      for (int f = 0; f < kFactors; ++f) {
        if (f == seed[0] || f == seed[1]) continue;
        for (int level = 0; level < kLevels[f]; ++level) {
          Settings other = s;
          other[f] = level;
          if (const int improved = covered_by(other); improved > count) {
            count = improved;
            s = other;
          }
        }
      }
      if (count > best_count) {
        best_count = count;
        best = s;
      }
    }
    for (int f = 0; f < kFactors; ++f) {
      for (int g = f + 1; g < kFactors; ++g) missing.erase({f, g, best[f], best[g]});
    }
    rows.push_back(best);
  }
  return rows;
}

/// What a sweep's settings of the sizes mean: (Sq, Skv), (D, Dv), (Hq, Hkv).
struct Sizes {
  using Pair = std::pair<std::int64_t, std::int64_t>;
  std::array<Pair, kLevels[kLengths]> lengths;
  std::array<Pair, kLevels[kHeadDim]> dims;
  std::array<Pair, kLevels[kHeads]> heads;
};

constexpr Sizes kRagged = {
    {{{1, 3},
      {2, 1},
      {64, 128},
      {113, 203},
      {128, 217},
      {239, 1},
      {108, 256},
      {65, 65},
      {200, 31}}},
    {{{16, 16}, {40, 40}, {59, 59}, {64, 64}, {80, 80}, {96, 32}, {24, 111}, {128, 128}}},
    {{{2, 2}, {2, 1}, {6, 1}}}};

/// Decoding: few queries, up to a few thousand keys.
constexpr Sizes kFewQueries = {
    {{{1, 1}, {1, 700}, {2, 1500}, {4, 333}, {3, 1025}, {8, 96}, {16, 600}, {1, 2049}, {13, 17}}},
    {{{64, 64}, {128, 128}, {256, 256}, {40, 40}, {192, 128}, {16, 200}, {59, 59}, {96, 96}}},
    {{{2, 2}, {8, 2}, {20, 1}}}};

/// Head dims that few kernels take.
constexpr Sizes kLargeHeadDims = {
    {{{1, 3}, {2, 1}, {32, 48}, {50, 97}, {17, 70}, {65, 1}, {49, 33}, {65, 65}, {20, 16}}},
    {{{264, 264},
      {320, 320},
      {384, 384},
      {391, 391},
      {512, 512},
      {448, 300},
      {257, 40},
      {64, 500}}},
    {{{2, 2}, {2, 1}, {3, 1}}}};

void set_sizes(const Settings& s, const Sizes& sizes, Case& c) {
  std::tie(c.seq_q, c.seq_kv) = sizes.lengths[s[kLengths]];
  std::tie(c.head_dim, c.head_dim_v) = sizes.dims[s[kHeadDim]];
  std::tie(c.heads_q, c.heads_kv) = sizes.heads[s[kHeads]];
  c.layout = std::array{LayoutKind::contiguous, LayoutKind::bshd, LayoutKind::padded,
                        LayoutKind::packed_qkv, LayoutKind::broadcast_kv}[s[kLayout]];
  if (c.layout == LayoutKind::packed_qkv) {
    c.seq_kv = c.seq_q;
    c.head_dim_v = c.head_dim;
  }
  const auto q = static_cast<std::int32_t>(c.seq_q), kv = static_cast<std::int32_t>(c.seq_kv);
  if ((s[kUsedLengths] & 1) != 0) c.q_lens = {q, q / 2};
  if ((s[kUsedLengths] & 2) != 0) c.kv_lens = {kv / 3, kv};
}

void set_masks(const Settings& s, Case& c) {
  c.attention.causal = s[kPosition] == 1 || s[kPosition] == 2 || s[kPosition] == 5;
  c.attention.alignment = s[kPosition] == 2 || s[kPosition] == 4 || s[kPosition] == 6
                              ? Alignment::top_left
                              : Alignment::bottom_right;
  if (s[kPosition] == 3) c.attention.window = {20, 33};
  if (s[kPosition] == 4) c.attention.window = {-1, 10};
  if (s[kPosition] == 5) c.attention.window = {17, -1};
  if (s[kPosition] == 6) c.attention.window = {0, 70};
  if (s[kMask] == 1) c.mask = Extents{true, true, true};
  if (s[kMask] == 2) c.mask = Extents{false, false, true};
  if (s[kMask] == 3) c.mask = Extents{true, false, false};
  if (s[kBlocks] > 0) {
    constexpr std::pair<std::int64_t, std::int64_t> kBlockLevels[] = {
        {64, 64}, {16, 16}, {128, 32}, {48, 128}, {32, 80}};
    const auto [block_q, block_kv] = kBlockLevels[s[kBlocks] - 1];
    c.blocks = BlockPattern{block_q,
                            block_kv,
                            s[kBlocks] % 2 == 0,
                            s[kBlocks] % 3 != 0,
                            0.6,
                            s[kBlocks] == 3 ? 0 : 0.4};
  }
}

Case to_case(const Settings& s, const Sizes& sizes) {
  Case c;
  c.dtype = std::array{DType::f32, DType::f16, DType::bf16}[s[kDtype]];
  set_sizes(s, sizes, c);
  set_masks(s, c);
  if (s[kBias] == 1) c.bias = Extents{true, true, true};
  if (s[kBias] == 2) c.bias = Extents{false, true, true};
  if (s[kBias] == 3) c.bias = Extents{true, false, false};
  if (s[kBias] == 4) c.bias = Extents{false, false, true};
  c.bias_f32 = s[kBias] == 2;
  c.bias_minus_infinity = s[kBias] == 4 ? 0.2 : 0;
  c.alibi_rank = s[kAlibi];
  c.attention.softcap = s[kSoftcap] == 1 ? 12 : 0;
  c.sink = s[kSink] == 1;
  c.attention.dropout_p = s[kDropout] == 1 ? 0.3 : 0;
  c.logits = std::array{1.0, 8.0, 2500.0}[s[kLogits]];
  c.d_lse = s[kLseGradient] == 1;
  if (s[kScale] == 1) c.attention.scale = 0.4;
  return c;
}

void sweep(const Sizes& sizes, std::optional<DType> only = {}) {
  const std::vector<Settings> rows = covering_array();
  std::printf("pairwise: %zu cases cover every pair of settings\n", rows.size());
  for (const Settings& settings : rows) {
    Case c = to_case(settings, sizes);
    c.dtype = only.value_or(c.dtype);
    check_case(c);
  }
}

TEST(Pairwise, EveryPairOfSettings) { sweep(kRagged); }

TEST(Pairwise, EveryPairOfSettingsWithFewQueries) { sweep(kFewQueries); }

TEST(Pairwise, EveryPairOfSettingsWithLargeHeadDims) { sweep(kLargeHeadDims); }

TEST(Pairwise, EveryPairOfSettingsWithLargeHeadDimsInF32) { sweep(kLargeHeadDims, DType::f32); }

}  // namespace
}  // namespace tessera::test
