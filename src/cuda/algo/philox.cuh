// Dropout's random numbers on the device: the stream of core/philox.hpp, word for word.
#pragma once

#include "core/philox.hpp"
#include "cuda/algo/parameters.hpp"

namespace tessera::cuda {

/// Philox4x32-10 of counter (c.x, c.y, c.z, c.w).
__device__ __forceinline__ uint4 philox(uint4 c, std::uint32_t k0, std::uint32_t k1) {
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint32_t high0 = __umulhi(kPhiloxM0, c.x);
    const std::uint32_t high1 = __umulhi(kPhiloxM1, c.z);
    c = {high1 ^ c.y ^ k0, kPhiloxM1 * c.z, high0 ^ c.w ^ k1, kPhiloxM0 * c.x};
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return c;
}

/// The four words that decide on elements (b, h, i, 4 · j4 … 4 · j4 + 3).
__device__ __forceinline__ uint4 dropout_words(const Parameters& p, int b, int h, int i, int j4) {
  return philox({static_cast<unsigned>(j4), static_cast<unsigned>(i), static_cast<unsigned>(h),
                 static_cast<unsigned>(b)},
                p.dropout_key[0], p.dropout_key[1]);
}

/// Z of element (b, h, i, j): 0 if it is dropped, else 1 / (1 − p).
__device__ __forceinline__ float dropout_keep(const Parameters& p, int b, int h, int i, int j) {
  const uint4 words = dropout_words(p, b, h, i, j / 4);
  const unsigned pair[2] = {j % 2 == 0 ? words.x : words.y, j % 2 == 0 ? words.z : words.w};
  return (j % 4 < 2 ? pair[0] : pair[1]) >= p.dropout_threshold ? p.keep_scale : 0.0f;
}

}  // namespace tessera::cuda
