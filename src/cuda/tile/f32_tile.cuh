// A tile of f32 rows in shared memory whose warps read operands A from it and split them on the way
// (split.cuh): two thirds of the memory of the terms.
#pragma once

#include "cuda/tile/split.cuh"

namespace tessera::cuda {

/// kRows × kCols floats. The 16-byte vectors of a row are permuted by the row's number: pairs of
/// floats at 8 neighbouring columns of 4 consecutive rows lie in different banks.
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
    return base + row * kPitch + ((vector ^ (row % 4 * 2)) * 16);
  }
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

/// A [16 × 16]: rows [row, row + 16) of the tile, columns [16 · k, 16 · k + 16).
template <int kRows, int kCols>
__device__ __forceinline__ SplitOperand read_split_a(const F32Tile<kRows, kCols>& tile, int row,
                                                     int k) {
  using Tile = F32Tile<kRows, kCols>;
  const int g = lane_id() / 4, t = lane_id() % 4;
  const std::uint32_t lane = g * Tile::kPitch + (t / 2 ^ g % 4 * 2) * 16 + t % 2 * 8;
  SplitOperand a;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int vector = 4 * k + e / 2 * 2;  // has no bit in common with the lane's
    const float2 pair =
        ptx::load_shared_pair((lane ^ vector % 8 * 16) +
                              (tile.base + (row + e % 2 * 8) * Tile::kPitch + vector / 8 * 128));
    a.set(e, pair.x, pair.y);
  }
  return a;
}

}  // namespace tessera::cuda
