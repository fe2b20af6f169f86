// A tile of 16-bit rows in shared memory, laid out so that ldmatrix meets no bank conflict.
#pragma once

#include <cstdint>

#include "cuda/algo/parameters.hpp"
#include "cuda/algo/sequence.cuh"
#include "cuda/ptx/opaque.cuh"
#include "cuda/ptx/shared.cuh"

namespace tessera::cuda {

/// kRows × kCols elements in panels of 64 (or 32) columns. Within a panel the 16-byte vectors of a
/// row are permuted by the row's number: any 8 consecutive rows at one column lie in 8 different
/// groups of four banks. kCols is a multiple of 32.
template <typename T, int kRows_, int kCols_>
struct SharedTile {
  using Element = T;
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kVector = 16 / sizeof(T);  ///< Elements of one vector.
  static constexpr int kPanel = kCols % 64 == 0 ? 64 : 32;
  static constexpr int kPanelVectors = kPanel / kVector;
  static constexpr int kRowVectors = kCols / kVector;
  static constexpr int kPitch = kPanel * static_cast<int>(sizeof(T));  ///< Bytes of a panel's row.
  static constexpr int kBytes = kRows * kCols * static_cast<int>(sizeof(T));
  static_assert(kCols % kPanel == 0);

  std::uint32_t base = 0;  ///< Address in shared memory, a multiple of 128.

  /// The columns from `column` on, a multiple of a panel's, as a tile of their own.
  __device__ __forceinline__ SharedTile columns_from(int column) const {
    return {base + column / kPanel * kRows * kPitch};
  }

  /// The rows from `row` on, a multiple of 8. Only its columns' panels keep their distance: no row
  /// of it beyond this tile's may be used.
  __device__ __forceinline__ SharedTile rows_from(int row) const { return {base + row * kPitch}; }

  /// Address of vector `vector` (of 8 elements) of a row.
  __device__ __forceinline__ std::uint32_t at(int row, int vector) const {
    const int panel = vector / kPanelVectors;
    const int in_panel = vector % kPanelVectors;
    const int swizzle = kPanel == 64 ? row % 8 : row / 2 % 4;
    return base + (panel * kRows + row) * kPitch + ((in_panel ^ swizzle) * 16);
  }
};

/// Starts to fill `tile` with rows that are whole vectors. What does not depend on the thread is
/// left to uniform registers if the caller's pointers and numbers are uniform.
template <int kThreads, typename T, int kRows, int kCols>
__device__ __forceinline__ void copy_vectors(const SharedTile<T, kRows, kCols>& tile, const T* rows,
                                             std::int64_t stride, int row0, int count, int columns,
                                             unsigned listed, unsigned thread = threadIdx.x) {
  using Tile = SharedTile<T, kRows, kCols>;
  constexpr int kPassRows = kThreads / Tile::kPanelVectors;  // rows that the threads span
  static_assert(kPassRows % 8 == 0, "passes share a swizzle");
  const int row = static_cast<int>(thread / Tile::kPanelVectors);
  const int vector = static_cast<int>(thread % Tile::kPanelVectors);
  std::uint32_t to = tile.at(row, vector);
  const T* from = rows + row0 * stride + (row * stride + vector * Tile::kVector);
  const auto copy_panels = [&](int pass, int used_columns) {
#pragma unroll
    for (int panel = 0; panel < kCols / Tile::kPanel; ++panel) {
      // Copies of 0 bytes read nothing, so their address need not be valid.
      const bool exists = vector * Tile::kVector + panel * Tile::kPanel < used_columns;
      ptx::cp_async_16(to + (panel * kRows + pass) * Tile::kPitch, from + panel * Tile::kPanel,
                       exists ? 16 : 0);
    }
    from += kPassRows * stride;
  };
  constexpr unsigned kAll = kRows / 16 == 32 ? ~0u : (1u << (kRows / 16)) - 1;
  if (row0 + kRows <= count && (listed & kAll) == kAll) {
#pragma unroll
    for (int pass = 0; pass < kRows; pass += kPassRows) {
      if (kRows % kPassRows != 0 && row + pass >= kRows) break;
      copy_panels(pass, columns);
    }
  } else {
#pragma unroll 1
    for (int at = row; at < kRows; at += kPassRows) {
      const bool exists = row0 + at < count && (listed >> (at / 16) & 1u) != 0;
      copy_panels(0, exists ? columns : 0);
      to += kPassRows * Tile::kPitch;
    }
  }
}

/// Fills `tile` with rows that are not whole vectors, element by element.
template <int kThreads, typename T, int kRows, int kCols>
__device__ inline void store_elements(const SharedTile<T, kRows, kCols>& tile, const T* rows,
                                      std::int64_t stride, int row0, int count, int columns,
                                      unsigned listed, unsigned thread) {
  using Tile = SharedTile<T, kRows, kCols>;
  unsigned first = thread;
  ptx::make_opaque(first);  // the rare path
#pragma unroll 1
  for (unsigned x = first; x < kRows * Tile::kRowVectors; x += kThreads) {
    const int row = static_cast<int>(x / Tile::kRowVectors);
    const int vector = static_cast<int>(x % Tile::kRowVectors);
    const bool exists = row0 + row < count && (listed >> (row / 16) & 1u) != 0;
    const T* from = rows + (row0 + row) * stride + vector * Tile::kVector;
    T elements[Tile::kVector];
#pragma unroll
    for (int e = 0; e < Tile::kVector; ++e) {
      elements[e] = exists && vector * Tile::kVector + e < columns ? from[e] : T(0.0f);
    }
    const auto* w = reinterpret_cast<const std::uint32_t*>(elements);
    ptx::store_shared_16(tile.at(row, vector), w[0], w[1], w[2], w[3]);
  }
}

/// Starts to fill `tile` with rows [row0, row0 + kRows) of a head: `rows` points at row 0, of which
/// `count` rows of `columns` elements exist. Whatever lies beyond, and granules of 16 rows without
/// their bit in `listed`, becomes zero and is not read. All kThreads threads of the block call it;
/// with cp.async where rows are whole vectors (the caller commits and waits), else with plain
/// stores.
template <int kThreads, typename T, int kRows, int kCols>
__device__ __forceinline__ void load_tile(const SharedTile<T, kRows, kCols>& tile, const T* rows,
                                          std::int64_t stride, bool vectors, int row0, int count,
                                          int columns, unsigned listed = ~0u,
                                          unsigned thread = threadIdx.x) {
  if (vectors) {
    copy_vectors<kThreads>(tile, rows, stride, row0, count, columns, listed, thread);
  } else {
    store_elements<kThreads>(tile, rows, stride, row0, count, columns, listed, thread);
  }
}

/// Stores rows [first, first + kStored) of `tile` to rows row0 + first … of a head: `rows` points
/// at row 0, of which `count` rows of `columns` elements exist. One warp calls it.
template <int kStored, typename T, int kRows, int kCols>
__device__ __forceinline__ void store_rows(const SharedTile<T, kRows, kCols>& tile, int first,
                                           T* rows, std::int64_t stride, bool vectors, int row0,
                                           int count, int columns) {
  using Tile = SharedTile<T, kRows, kCols>;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  if (!vectors) {
#pragma unroll 1
    for (int x = lane; x < kStored * Tile::kRowVectors; x += kWarpSize) {
      const int row = first + x / Tile::kRowVectors;
      const int vector = x % Tile::kRowVectors;
      if (row0 + row >= count) break;
      std::uint32_t words[4];
      ptx::load_shared_16(words, tile.at(row, vector));
      const T* elements = reinterpret_cast<const T*>(words);
      T* to = rows + (row0 + row) * stride + vector * Tile::kVector;
#pragma unroll
      for (int e = 0; e < Tile::kVector; ++e) {
        if (vector * Tile::kVector + e < columns) to[e] = elements[e];
      }
    }
    return;
  }
  constexpr int kPassRows = kWarpSize / Tile::kPanelVectors;
  const int row = first + lane / Tile::kPanelVectors;
  const int vector = lane % Tile::kPanelVectors;
  T* to = rows + (row0 + row) * stride + vector * Tile::kVector;
#pragma unroll 2
  for (int pass = 0; pass < kStored; pass += kPassRows) {
    if (row0 + row + pass >= count) break;
#pragma unroll
    for (int panel = 0; panel < kCols / Tile::kPanel; ++panel) {
      if (vector * Tile::kVector + panel * Tile::kPanel >= columns) break;
      std::uint32_t words[4];
      ptx::load_shared_16(words, tile.at(row + pass, vector + panel * Tile::kPanelVectors));
      *reinterpret_cast<uint4*>(to + panel * Tile::kPanel) = {words[0], words[1], words[2],
                                                              words[3]};
    }
    to += kPassRows * stride;
  }
}

}  // namespace tessera::cuda
