// Products of a warpgroup (ptx/wgmma.cuh): 64 rows, operands in shared tiles or registers.
//
// The swizzle of SharedTile is the one that the copy engine writes and wgmma reads, if the tile's
// base is a multiple of 1024.
//
// These functions only start products; the caller fences before, commits and waits.
#pragma once

#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile/shared_tile.cuh"

namespace tessera::cuda {

inline constexpr int kGroupThreads = 128;  ///< Threads of a warpgroup.
inline constexpr int kGroupRows = 64;      ///< Rows of its products.

template <typename Tile>
inline constexpr ptx::Swizzle kSwizzle =
    Tile::kPitch == 128 ? ptx::Swizzle::bytes_128 : ptx::Swizzle::bytes_64;

/// Steps of 32 bytes along a tile's rows: one instruction's.
template <typename Tile>
inline constexpr int kRowSteps = Tile::kRowVectors / 2;

/// Bytes [32 · k, 32 · k + 32) of a tile's rows, as an operand whose rows lie along k.
template <typename Tile>
__device__ __forceinline__ std::uint64_t rows_operand(const Tile& tile, int k) {
  constexpr int kSteps = Tile::kPitch / 32;
  return ptx::matrix_descriptor(tile.base,
                                k / kSteps * (Tile::kRows * Tile::kPitch) + k % kSteps * 32, 16,
                                8 * Tile::kPitch, kSwizzle<Tile>);
}

/// Rows [16 · k, 16 · k + 16) of a tile, as an operand whose rows lie across k.
template <typename Tile>
__device__ __forceinline__ std::uint64_t columns_operand(const Tile& tile, int k) {
  return ptx::matrix_descriptor(tile.base, k * 16 * Tile::kPitch, Tile::kRows * Tile::kPitch,
                                8 * Tile::kPitch, kSwizzle<Tile>);
}

/// acc [64 × 8 · kTiles] = A Bᵀ by `Product`, over the tiles' columns: the first rows of both
/// tiles.
template <typename Product, typename Number, int kTiles, typename TileA, typename TileB>
__device__ __forceinline__ void start_rows_by(Number (&acc)[kTiles][4], const TileA& a,
                                              const TileB& b) {
  static_assert(TileA::kRows >= kGroupRows && TileB::kRows >= 8 * kTiles);
  Product::template shared<false>(acc, rows_operand(a, 0), rows_operand(b, 0));
#pragma unroll
  for (int k = 1; k < kRowSteps<TileA>; ++k) {
    Product::template shared<true>(acc, rows_operand(a, k), rows_operand(b, k));
  }
}

/// The same on 16-bit operands.
template <typename T, int kTiles, typename TileA, typename TileB>
__device__ __forceinline__ void start_rows(float (&acc)[kTiles][4], const TileA& a,
                                           const TileB& b) {
  start_rows_by<ptx::Wgmma<T, 8 * kTiles>>(acc, a, b);
}

/// acc [64 × columns of b] += A B: A [64 × 16 · kSteps] in registers, the first rows of b.
template <typename T, int kTiles, int kSteps, typename TileB>
__device__ __forceinline__ void start_registers(float (&acc)[kTiles][4],
                                                const std::uint32_t (&a)[kSteps][4],
                                                const TileB& b) {
  static_assert(TileB::kCols == 8 * kTiles && TileB::kRows >= 16 * kSteps);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    ptx::Wgmma<T, 8 * kTiles>::registers(acc, a[k], columns_operand(b, k));
  }
}

/// acc [64 × columns of b] += A B: the first 64 rows and 16 · kSteps columns of a, and as many rows
/// of b.
template <int kSteps, typename T, int kTiles, typename TileA, typename TileB>
__device__ __forceinline__ void start_mixed(float (&acc)[kTiles][4], const TileA& a,
                                            const TileB& b) {
  static_assert(TileB::kCols == 8 * kTiles && TileB::kRows >= 16 * kSteps);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    ptx::Wgmma<T, 8 * kTiles>::template mixed<true>(acc, rows_operand(a, k), columns_operand(b, k));
  }
}

/// acc [64 × 8 · kTiles] = Aᵀ B, over the tiles' rows: the first columns of both tiles.
template <typename T, int kTiles, typename TileA, typename TileB>
__device__ __forceinline__ void start_across(float (&acc)[kTiles][4], const TileA& a,
                                             const TileB& b) {
  static_assert(TileA::kPanel == kGroupRows && TileA::kRows == TileB::kRows);
  using Product = ptx::Wgmma<T, 8 * kTiles>;
  Product::template across<false>(acc, columns_operand(a, 0), columns_operand(b, 0));
#pragma unroll
  for (int k = 1; k < TileA::kRows / 16; ++k) {
    Product::template across<true>(acc, columns_operand(a, k), columns_operand(b, k));
  }
}

}  // namespace tessera::cuda
