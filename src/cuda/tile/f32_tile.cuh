// A tile of f32 rows in shared memory whose warps split operands where they read them (split.cuh):
// two thirds of the memory of the terms.
#pragma once

#include "cuda/ptx/shared_float.cuh"
#include "cuda/tile/split.cuh"

namespace tessera::cuda {

/// kRows × kCols floats. The 16-byte vectors of a row are permuted by the row's number: the floats
/// at 8 neighbouring columns of 4 consecutive rows, and of every other of 8 rows, lie in different
/// banks.
template <int kRows_, int kCols_>
struct F32Tile {
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kRowVectors = kCols / 4;
  static constexpr int kPitch = kCols * 4;  ///< Bytes of a row.
  static constexpr int kBytes = kRows * kPitch;
  static_assert(kCols % 32 == 0);

  std::uint32_t base = 0;  ///< Address in shared memory, a multiple of 128.

  /// Address of vector `vector` (of 4 elements) of a row.
  __device__ __forceinline__ std::uint32_t at(int row, int vector) const {
    return base + row * kPitch + ((vector ^ swizzle(row)) * 16);
  }

  /// The columns from `column` on, a multiple of 32, as a tile of their own.
  __device__ __forceinline__ F32Tile columns_from(int column) const {
    return {base + column * static_cast<int>(sizeof(float))};
  }

  __device__ __forceinline__ static int swizzle(int row) { return (row % 4 ^ row / 4 % 2) * 2; }
};

/// Starts to fill `tile`, as load_tile does (shared_tile.cuh).
template <int kThreads, int kRows, int kCols>
__device__ __forceinline__ void load_f32_tile(const F32Tile<kRows, kCols>& tile, const float* rows,
                                              std::int64_t stride, bool vectors, int row0,
                                              int count, int columns, unsigned listed = ~0u) {
  using Tile = F32Tile<kRows, kCols>;
#pragma unroll 1
  for (int x = static_cast<int>(threadIdx.x); x < kRows * Tile::kRowVectors; x += kThreads) {
    const int row = x / Tile::kRowVectors;
    const int vector = x % Tile::kRowVectors;
    const int left =
        row0 + row < count && (listed >> (row / 16) & 1u) != 0 ? columns - 4 * vector : 0;
    const float* from = rows + (row0 + row) * stride + 4 * vector;
    if (vectors) {
      ptx::cp_async_16(tile.at(row, vector), from, left > 0 ? 16 : 0);
    } else {
      std::uint32_t words[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) words[e] = e < left ? __float_as_uint(from[e]) : 0;
      ptx::store_shared_16(tile.at(row, vector), words[0], words[1], words[2], words[3]);
    }
  }
}

/// Four pairs of neighbouring floats of each thread: rows row + g and row + g + 8 at columns 16 k +
/// 2 t, then both at 8 columns further. visit(n, pair). row is a multiple of 8.
template <int kRows, int kCols, typename Visit>
__device__ __forceinline__ void read_pairs(const F32Tile<kRows, kCols>& tile, int row, int k,
                                           Visit visit) {
  using Tile = F32Tile<kRows, kCols>;
  const int g = lane_id() / 4, t = lane_id() % 4;
  const std::uint32_t lane = g * Tile::kPitch + (t / 2 ^ Tile::swizzle(g)) * 16 + t % 2 * 8;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int vector = 4 * k + n / 2 * 2;  // has no bit in common with the lane's
    visit(n,
          ptx::load_shared_pair((lane ^ vector % 8 * 16) +
                                (tile.base + (row + n % 2 * 8) * Tile::kPitch + vector / 8 * 128)));
  }
}

/// A [16 × 16]: rows [row, row + 16) of the tile, columns [16 · k, 16 · k + 16).
template <int kRows, int kCols>
__device__ __forceinline__ SplitOperand read_split_a(const F32Tile<kRows, kCols>& tile, int row,
                                                     int k) {
  SplitOperand a;
  read_pairs(tile, row, k, [&](int n, float2 pair) { a.set(n, pair.x, pair.y); });
  return a;
}

/// Two operands B [16 × 8] = Tᵀ: their columns are rows [row, row + 8) of the tile and the 8 after
/// them, their rows its columns [16 · k, 16 · k + 16).
template <int kRows, int kCols>
__device__ __forceinline__ SplitOperand read_split_b_transposed(const F32Tile<kRows, kCols>& tile,
                                                                int row, int k) {
  SplitOperand b;
  read_pairs(tile, row, k, [&](int n, float2 pair) { b.set(n % 2 * 2 + n / 2, pair.x, pair.y); });
  return b;
}

/// Two operands B [16 × 8]: rows [row, row + 16) of the tile, columns [16 · n, 16 · n + 8) and the
/// 8 after them. row is a multiple of 8.
template <int kRows, int kCols>
__device__ __forceinline__ SplitOperand read_split_b(const F32Tile<kRows, kCols>& tile, int row,
                                                     int n) {
  using Tile = F32Tile<kRows, kCols>;
  const int g = lane_id() / 4, t = lane_id() % 4;
  const std::uint32_t lane = 2 * t * Tile::kPitch + (g / 4 ^ Tile::swizzle(2 * t)) * 16 + g % 4 * 4;
  SplitOperand b;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int vector = 4 * n + e / 2 * 2;
    float pair[2];
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int permuted = vector % 8 ^ Tile::swizzle(odd);  // that of row 2 t + odd
      pair[odd] = ptx::load_shared_float(
          (lane ^ permuted * 16) +
          (tile.base + (row + e % 2 * 8 + odd) * Tile::kPitch + vector / 8 * 128));
    }
    b.set(e, pair[0], pair[1]);
  }
  return b;
}

}  // namespace tessera::cuda
