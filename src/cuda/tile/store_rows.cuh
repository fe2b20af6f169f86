// From accumulators to global memory, 16 bytes at a time.
#pragma once

#include "cuda/algo/sequence.cuh"
#include "cuda/ptx/mma.cuh"

namespace tessera::cuda {

/// Four lanes have word t of each of four vectors; afterwards lane t has all words of vector t.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&w)[4]) {
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const bool high = (threadIdx.x & step) != 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int low = step == 1 ? 2 * pair : pair;
      const std::uint32_t sent = high ? w[low] : w[low + step];
      const std::uint32_t got = __shfl_xor_sync(~0u, sent, step);
      (high ? w[low] : w[low + step]) = got;
    }
  }
}

/// Stores a row of `columns` elements that four lanes have, word t of each vector of 8 elements in
/// lane t; `row` null: there is none. Whole warps call it, 8 rows each.
template <typename T, int kTiles>
__device__ __forceinline__ void store_row(T* row, const std::uint32_t (&words)[kTiles], int columns,
                                          bool vectors) {
  static_assert(kTiles % 4 == 0);
  const int t = static_cast<int>(threadIdx.x % 4);
  if (!vectors) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const auto* elements = reinterpret_cast<const T*>(&words[n]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * n + 2 * t + e;
        if (row != nullptr && column < columns) row[column] = elements[e];
      }
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < kTiles; n += 4) {
    std::uint32_t w[4] = {words[n], words[n + 1], words[n + 2], words[n + 3]};
    transpose_quad(w);
    const int column = 8 * (n + t);
    if (row != nullptr && column < columns) {
      *reinterpret_cast<uint4*>(row + column) = {w[0], w[1], w[2], w[3]};
    }
  }
}

/// The same from floats.
template <typename T, int kTiles>
__device__ __forceinline__ void store_row_of(T* row, const float (&x)[kTiles][2], int columns,
                                             bool vectors) {
  std::uint32_t words[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) words[n] = ptx::pack<T>(x[n][0], x[n][1]);
  store_row(row, words, columns, vectors);
}

/// The same in f32, of any alignment.
template <int kTiles>
__device__ __forceinline__ void store_row_f32(float* row, const float (&x)[kTiles][2],
                                              int columns) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = 8 * n + static_cast<int>(threadIdx.x % 4) * 2 + e;
      if (row != nullptr && column < columns) row[column] = x[n][e];
    }
  }
}

}  // namespace tessera::cuda
