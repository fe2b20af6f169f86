// What the elements of generated q, k and v look like.
#pragma once

#include <array>
#include <cstdint>

#include "attention_case.hpp"

namespace tessera::cli {

enum class Distribution : std::uint8_t {
  normal,
  uniform,       ///< Of the same variance, 1.
  outliers,      ///< Normal; one channel in 16 of q and k is 8 times as large.
  biases,        ///< Normal; each channel of q and k has a mean of its own, N(0, 2²).
  value_biases,  ///< Normal; each channel of v has one, N(0, 4²).
};
inline constexpr std::array kDistributions = {Distribution::normal, Distribution::uniform,
                                              Distribution::outliers, Distribution::biases,
                                              Distribution::value_biases};

const char* name_of(Distribution distribution);

/// Fills q, k and v, the same for the same seed but for the rounding to the dtype.
void fill_tokens(Distribution distribution, std::uint64_t seed, AttentionCase& c);

}  // namespace tessera::cli
