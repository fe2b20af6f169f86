// P V of the quantised kernels (sage.cuh): weights as the A operand [16 × 64], tiles of V, and
// their products, in each format.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/ptx/mma_8bit.cuh"
#include "cuda/sm80/sage.hpp"
#include "cuda/tile/products.cuh"
#include "cuda/tile/shared_tile.cuh"

namespace tessera::cuda::sm80 {

/// Two bytes. Tiles of bytes are tiles of pairs to copies and ldmatrix.
using Pair = std::uint16_t;

/// 16 bits.
template <ValueFormat kFormat, int kHeadDim>
struct SageValues {
  using T = std::conditional_t<kFormat == ValueFormat::f16, __half, __nv_bfloat16>;
  using Tile = SharedTile<T, SageConfig::tile_n, kHeadDim>;  ///< Keys by channels.
  struct Weights {
    std::uint32_t rows[1][SageConfig::tile_n / 16][4];
  };

  /// Weights of row `half` in score tiles n, which is even, and n + 1.
  __device__ __forceinline__ static void set(Weights& weights, int n, int half,
                                             const float (&p)[4]) {
    weights.rows[0][n / 2][half] = ptx::pack<T>(p[0], p[1]);
    weights.rows[0][n / 2][half + 2] = ptx::pack<T>(p[2], p[3]);
  }

  /// Adds each row's weights to sums[half].
  __device__ __forceinline__ static void add_row_sums(float (&sums)[2], const Weights& weights) {
    constexpr std::uint32_t kOnes = kFormat == ValueFormat::f16 ? 0x3c003c00 : 0x3f803f80;
    float part[4] = {};
#pragma unroll
    for (const auto& step : weights.rows[0]) ptx::mma_m16n8k16<T>(part, step, kOnes, kOnes);
    sums[0] += part[0];
    sums[1] += part[2];
  }

  /// part += P V for 16 channels, from tile n of them on.
  __device__ __forceinline__ static void multiply_channels(float (&part)[1][2][4],
                                                           const Weights& weights, const Tile& v,
                                                           int n, int lane) {
    multiply_registers<T>(part, weights.rows, v, 0, n / 2, lane);
  }
};

template <int kHeadDim>
struct SageValues<ValueFormat::e4m3, kHeadDim> {
  using Tile = SharedTile<Pair, kHeadDim, SageConfig::tile_n / 2>;  ///< Channels by keys.
  struct Weights {
    ptx::E4m3Rows rows[SageConfig::tile_n / 32];
  };

  __device__ __forceinline__ static void set(Weights& weights, int n, int half,
                                             const float (&p)[4]) {
    weights.rows[n / 4].set(half + n % 4, p[0], p[1], p[2], p[3]);
  }

  __device__ __forceinline__ static void add_row_sums(float (&sums)[2], const Weights& weights) {
    constexpr std::uint32_t kOnes = 0x38383838;
    float part[4] = {};
#pragma unroll
    for (const auto& step : weights.rows) ptx::mma_m16n8k32_e4m3(part, step, kOnes, kOnes);
    sums[0] += part[0];
    sums[1] += part[2];
  }

  __device__ __forceinline__ static void multiply_channels(float (&part)[1][2][4],
                                                           const Weights& weights, const Tile& v,
                                                           int n, int lane) {
#pragma unroll
    for (int k = 0; k < SageConfig::tile_n / 32; ++k) {
      std::uint32_t b[4];
      read_b_transposed(b, v, 8 * n, k, lane);
      ptx::mma_m16n8k32_e4m3(part[0][0], weights.rows[k], b[0], b[1]);
      ptx::mma_m16n8k32_e4m3(part[0][1], weights.rows[k], b[2], b[3]);
    }
  }
};

}  // namespace tessera::cuda::sm80
