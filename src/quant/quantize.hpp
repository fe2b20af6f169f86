// Smoothing and quantising one head's tokens: the scalar model that kernels' integers are compared
// with.
#pragma once

#include <cstdint>

#include "quant/scheme.hpp"

namespace tessera::quant {

/// Tokens of one head of one sequence as f32, [rows][columns]. `used` (null: all) says which of
/// them exist: the others have no part in any mean or scale, and integers 0.
struct TokenRows {
  const float* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  const bool* used = nullptr;

  bool has(std::int64_t i) const { return used == nullptr || used[i]; }
  float at(std::int64_t i, std::int64_t d) const { return data[i * columns + d]; }
};

/// mean[d] of all used tokens: an ordered sum over blocks of `block` tokens of their ordered sums,
/// divided by the number of used tokens; zeros if there are none. Tokens that are not used add
/// zero.
void channel_means(const TokenRows& x, std::int64_t block, float* mean);

/// The same for each block on its own: means[block][d].
void block_means(const TokenRows& x, std::int64_t block, float* means);

/// What is subtracted from token i: row i / tokens_per_mean of `means`; nothing where that is null.
struct Means {
  const float* data = nullptr;
  std::int64_t tokens_per_mean = std::numeric_limits<std::int64_t>::max();

  float subtract_from(float x, const TokenRows& rows, std::int64_t i, std::int64_t d) const {
    return data == nullptr ? x : x - data[i / tokens_per_mean * rows.columns + d];
  }
};

/// values[i][d] and scales[group]; magnitudes is scratch of [groups].
void quantise_tokens(const TokenRows& x, const Means& means, ScaleGranularity granularity,
                     Side side, float levels, std::int8_t* values, float* scales,
                     std::uint32_t* magnitudes);

/// E4M3 codes[i][d] with a scale for each channel: scales[d].
void quantise_channels(const TokenRows& x, const Means& means, std::uint8_t* codes, float* scales);

}  // namespace tessera::quant
