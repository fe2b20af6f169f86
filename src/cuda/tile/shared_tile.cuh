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
  // Unsigned until it is divided, so that the compiler knows the remainders' ranges and takes the
  // swizzles out of the loops.
  const unsigned thread = threadIdx.x;
  if (!vectors) {
#pragma unroll 1
    for (int x = static_cast<int>(thread); x < kRows * Tile::kRowVectors; x += kThreads) {
      const int row = x / Tile::kRowVectors;
      const int column = x % Tile::kRowVectors * Tile::kVector;
      const bool exists = row0 + row < count && (listed >> (row / 16) & 1u) != 0;
      T elements[Tile::kVector];
#pragma unroll
      for (int e = 0; e < Tile::kVector; ++e) {
        const bool element_exists = exists && column + e < columns;
        elements[e] = element_exists ? rows[(row0 + row) * stride + column + e] : T(0.0f);
      }
      const auto* w = reinterpret_cast<const std::uint32_t*>(elements);
      ptx::store_shared_16(tile.at(row, x % Tile::kRowVectors), w[0], w[1], w[2], w[3]);
    }
    return;
  }
  // A pass moves one panel of kPassRows rows. What differs between passes is known when compiling,
  // but for the stride.
  constexpr int kPassRows = kThreads / Tile::kPanelVectors;
  static_assert(kPassRows % 8 == 0, "passes share a swizzle");
  const int first_row = static_cast<int>(thread / Tile::kPanelVectors);
  const int first_vector = static_cast<int>(thread % Tile::kPanelVectors);
  const T* from = rows + (row0 + first_row) * stride + first_vector * Tile::kVector;
#pragma unroll
  for (int pass = 0; pass < kRows; pass += kPassRows) {
    const int row = first_row + pass;
    if (kRows % kPassRows != 0 && row >= kRows) break;
    const bool row_exists = row0 + row < count && (listed >> (row / 16) & 1u) != 0;
#pragma unroll
    for (int panel = 0; panel < kCols / Tile::kPanel; ++panel) {
      const int vector = first_vector + panel * Tile::kPanelVectors;
      const bool exists = row_exists && vector * Tile::kVector < columns;
      ptx::cp_async_16(tile.at(row, vector), exists ? from + panel * Tile::kPanel : rows,
                       exists ? 16 : 0);
    }
    from += kPassRows * stride;
  }
}

/// Stores rows [first, first + kStored) of `tile` to rows row0 + first … of a head: `rows` points
/// at row 0, of which `count` rows of `columns` elements exist. One warp calls it.
template <int kStored, typename T, int kRows, int kCols>
__device__ __forceinline__ void store_rows(const SharedTile<T, kRows, kCols>& tile, int first,
                                           T* rows, std::int64_t stride, bool vectors, int row0,
                                           int count, int columns) {
  using Tile = SharedTile<T, kRows, kCols>;
  constexpr int kPassRows = kWarpSize / Tile::kPanelVectors;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
#pragma unroll
  for (int pass = 0; pass < kStored; pass += kPassRows) {
    const int row = first + pass + lane / Tile::kPanelVectors;
    if (row0 + row >= count) break;
    T* to = rows + (row0 + row) * stride;
#pragma unroll
    for (int panel = 0; panel < kCols / Tile::kPanel; ++panel) {
      const int vector = panel * Tile::kPanelVectors + lane % Tile::kPanelVectors;
      const int column = vector * Tile::kVector;
      if (column >= columns) break;
      std::uint32_t words[4];
      ptx::load_shared_16(words, tile.at(row, vector));
      if (vectors) {
        *reinterpret_cast<uint4*>(to + column) = {words[0], words[1], words[2], words[3]};
      } else {
        const T* elements = reinterpret_cast<const T*>(words);
#pragma unroll
        for (int e = 0; e < Tile::kVector; ++e) {
          if (column + e < columns) to[column + e] = elements[e];
        }
      }
    }
  }
}

}  // namespace tessera::cuda
