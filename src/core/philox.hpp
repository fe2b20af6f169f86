// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and what
// dropout makes of it. Every backend computes exactly this, so all of them drop the same elements.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace tessera {

inline constexpr std::uint32_t kPhiloxM0 = 0xD2511F53u;
inline constexpr std::uint32_t kPhiloxM1 = 0xCD9E8D57u;
inline constexpr std::uint32_t kPhiloxW0 = 0x9E3779B9u;
inline constexpr std::uint32_t kPhiloxW1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 10;

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

inline PhiloxCounter philox4x32(PhiloxCounter c, PhiloxKey k) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(kPhiloxM0) * c[0];
    const std::uint64_t p1 = static_cast<std::uint64_t>(kPhiloxM1) * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
    k = {k[0] + kPhiloxW0, k[1] + kPhiloxW1};
  }
  return c;
}

/// The dropout stream of one run. (seed, offset) give a key; element (b, h, i, j) then looks at
/// word j % 4 of the block with counter (j / 4, i, h, b). It is dropped iff that word is below p ·
/// 2³² (rounded down); kept elements are scaled by 1 / (1 − p).
struct DropoutStream {
  PhiloxKey key{};
  std::uint32_t threshold = 0;  ///< 0: nothing is dropped.
  float keep_scale = 1;

  DropoutStream(double p, std::uint64_t seed, std::uint64_t offset) {
    const PhiloxCounter derived = philox4x32(
        {static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(offset >> 32), 0, 0},
        {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
    key = {derived[0], derived[1]};
    threshold = static_cast<std::uint32_t>(std::floor(p * 0x1p32));
    keep_scale = static_cast<float>(1.0 / (1.0 - p));
  }

  bool kept(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const PhiloxCounter words =
        philox4x32({static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i),
                    static_cast<std::uint32_t>(h), static_cast<std::uint32_t>(b)},
                   key);
    return words[j % 4] >= threshold;
  }
};

}  // namespace tessera
