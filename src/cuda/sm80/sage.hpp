// The quantised forward kernels of row cuda_sage_sm80: which there are.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "cuda/algo/parameters.hpp"
#include "cuda/algo/tile_order.hpp"
#include "cuda/quant/operands.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda::sm80 {

/// What P and V are multiplied in.
enum class ValueFormat : std::uint8_t { e4m3, f16, bf16 };

/// How a block works (sage.cuh).
struct SageConfig {
  int head_dim;    ///< Of k and of v, padded: smaller ones are zero-filled in shared memory.
  bool four_bits;  ///< Integers of 4 bits, two a byte; else of 8.
  ValueFormat values;
  int blocks;  ///< Blocks that registers leave room for on a multiprocessor.

  static constexpr int warps = 4;
  static constexpr int tile_m = 16 * warps;  ///< Queries of a block;
  static constexpr int tile_n = kKeyGroup;   ///< keys of one step.
  static constexpr int stages = 2;           ///< Key tiles in shared memory.

  constexpr bool half() const { return values != ValueFormat::e4m3; }
  /// Of a row of K in shared memory.
  constexpr int key_bytes() const { return std::max(four_bits ? head_dim / 2 : head_dim, 64); }
  /// Of a tile of V.
  constexpr int value_bytes() const { return tile_n * head_dim * (half() ? 2 : 1); }
  /// A scale and an offset for every key.
  static constexpr int scale_bytes = 2 * 4 * tile_n;
  constexpr std::size_t shared_bytes() const {
    return stages * (tile_n * key_bytes() + value_bytes() + scale_bytes);
  }
};

/// A compiled kernel.
struct SageVariant {
  SageConfig config;
  /// `out`: dtype of o.
  Status (*enqueue)(const Parameters& p, const QuantisedOperands& x, DType out, const Tiles& tiles,
                    cudaStream_t stream);
};

/// Those of one head dim (one source file each).
std::span<const SageVariant> sage_d64();
std::span<const SageVariant> sage_d128();
std::span<const SageVariant> sage_d256();

}  // namespace tessera::cuda::sm80
