// A tile of 16-bit rows in shared memory, laid out so that ldmatrix meets no bank conflict.
#pragma once

#include <cstdint>

#include "cuda/algo/parameters.hpp"
#include "cuda/algo/sequence.cuh"
#include "cuda/ptx/shared.cuh"

namespace tessera::cuda {

/// kRows × kCols elements in panels of 64 (or 32) columns. Within a panel the 16-byte vectors of a
/// row are permuted by the row's number: any 8 consecutive rows at one column lie in 8 different
/// groups of four banks. kCols is a multiple of 32.
template <typename T, int kRows_, int kCols_>
struct SharedTile {
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kVector = 16 / sizeof(T);  ///< Elements of one vector.
  static constexpr int kPanel = kCols % 64 == 0 ? 64 : 32;
  static constexpr int kPanelVectors = kPanel / kVector;
  static constexpr int kRowVectors = kCols / kVector;
  static constexpr int kBytes = kRows * kCols * static_cast<int>(sizeof(T));
  static_assert(kCols % kPanel == 0);

  std::uint32_t base = 0;  ///< Address in shared memory, a multiple of 128.

  /// Address of vector `vector` (of 8 elements) of a row.
  __device__ __forceinline__ std::uint32_t at(int row, int vector) const {
    const int panel = vector / kPanelVectors;
    const int in_panel = vector % kPanelVectors;
    const int swizzle = kPanel == 64 ? row % 8 : row / 2 % 4;
    return base + (panel * kRows + row) * (kPanel * static_cast<int>(sizeof(T))) +
           ((in_panel ^ swizzle) * 16);
  }
};

/// Starts to fill `tile` with rows [row0, row0 + kRows) of a head: `rows` points at row 0, of which
/// `count` rows of `columns` elements exist. Whatever lies beyond, and granules of 16 rows without
/// their bit in `listed`, becomes zero and is not read. All kThreads threads of the block call it;
/// with cp.async where rows are whole vectors (the caller commits and waits), else with plain
/// stores.
template <int kThreads, typename T, int kRows, int kCols>
__device__ __forceinline__ void load_tile(const SharedTile<T, kRows, kCols>& tile, const T* rows,
                                          std::int64_t stride, bool vectors, int row0, int count,
                                          int columns, unsigned listed = ~0u) {
  using Tile = SharedTile<T, kRows, kCols>;
  constexpr int kTotal = kRows * Tile::kRowVectors;
#pragma unroll
  for (int first = 0; first < kTotal; first += kThreads) {
    const int x = first + static_cast<int>(threadIdx.x);
    if (kTotal % kThreads != 0 && x >= kTotal) break;
    const int row = x / Tile::kRowVectors;
    const int vector = x % Tile::kRowVectors;
    const int column = vector * Tile::kVector;
    const bool exists = row0 + row < count && column < columns && (listed >> (row / 16) & 1u) != 0;
    const T* from = exists ? rows + (row0 + row) * stride + column : rows;
    if (vectors) {
      ptx::cp_async_16(tile.at(row, vector), from, exists ? 16 : 0);
    } else {
      T elements[Tile::kVector];
#pragma unroll
      for (int e = 0; e < Tile::kVector; ++e) {
        elements[e] = exists && column + e < columns ? from[e] : T(0.0f);
      }
      const auto* w = reinterpret_cast<const std::uint32_t*>(elements);
      ptx::store_shared_16(tile.at(row, vector), w[0], w[1], w[2], w[3]);
    }
  }
}

}  // namespace tessera::cuda
