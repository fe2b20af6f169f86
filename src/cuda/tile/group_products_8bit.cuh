// Products of a warpgroup on 8-bit operands (ptx/wgmma_8bit.cuh): tiles of bytes are SharedTiles of
// pairs. As in group_products.cuh, the caller fences before, commits and waits.
#pragma once

#include "cuda/ptx/wgmma_8bit.cuh"
#include "cuda/tile/group_products.cuh"

namespace tessera::cuda {

/// The same `bytes` further on, from a descriptor: an addition of a constant, where building it
/// anew takes six instructions.
__device__ __forceinline__ std::uint64_t advanced(std::uint64_t operand, int bytes) {
  const auto low = static_cast<std::uint32_t>(operand) + static_cast<std::uint32_t>(bytes >> 4);
  return (operand >> 32 << 32) | low;
}
template <typename Tile>
__device__ __forceinline__ std::uint64_t rows_operand_from(std::uint64_t first, int k) {
  constexpr int kSteps = Tile::kPitch / 32;
  return advanced(first, k / kSteps * (Tile::kRows * Tile::kPitch) + k % kSteps * 32);
}

/// acc [64 × 8 · kTiles] = A Bᵀ of 8-bit integers.
template <int kTiles, typename TileA, typename TileB>
__device__ __forceinline__ void start_rows_s8(std::int32_t (&acc)[kTiles][4], const TileA& a,
                                              const TileB& b) {
  using Product = ptx::WgmmaS8<8 * kTiles>;
  static_assert(TileA::kRows >= kGroupRows && TileB::kRows >= 8 * kTiles);
  const std::uint64_t first_a = rows_operand(a, 0), first_b = rows_operand(b, 0);
  Product::template shared<false>(acc, first_a, first_b);
#pragma unroll
  for (int k = 1; k < kRowSteps<TileA>; ++k) {
    Product::template shared<true>(acc, rows_operand_from<TileA>(first_a, k),
                                   rows_operand_from<TileB>(first_b, k));
  }
}

/// acc [64 × 8 · kTiles] = A Bᵀ in e4m3, with the rows of b from `row`, a multiple of 8, on: A
/// [64 × columns of b] in registers.
template <int kTiles, int kSteps, typename TileB>
__device__ __forceinline__ void start_registers_e4m3(float (&acc)[kTiles][4],
                                                     const std::uint32_t (&a)[kSteps][4],
                                                     const TileB& all, int row) {
  static_assert(8 * kTiles <= TileB::kRows && kRowSteps<TileB> == kSteps);
  const TileB b{all.base + row * TileB::kPitch};
  using Product = ptx::WgmmaE4m3<8 * kTiles>;
  const std::uint64_t first = rows_operand(b, 0);
  Product::template registers<false>(acc, a[0], first);
#pragma unroll
  for (int k = 1; k < kSteps; ++k) {
    Product::template registers<true>(acc, a[k], rows_operand_from<TileB>(first, k));
  }
}

}  // namespace tessera::cuda
