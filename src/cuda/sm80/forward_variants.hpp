// The forward kernels of row cuda_sm80 that are compiled.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "cuda/algo/parameters.hpp"
#include "cuda/algo/tile_order.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda::sm80 {

/// How a block works (forward.cuh).
struct ForwardConfig {
  DType dtype;
  int head_dim, head_dim_v;  ///< Padded sizes: smaller ones are zero-filled in shared memory.
  int tile_m, tile_n;        ///< Queries of a block; keys of one step.
  int warps;
  int stages;   ///< Key tiles in shared memory.
  int blocks;   ///< Blocks that registers leave room for on a multiprocessor.
  bool extras;  ///< Softcap, bias, ALiBi, boolean mask, sink, dropout, scale ≤ 0.
  bool listed;  ///< Block masks.

  /// Above head dim 256 the columns of v are done in parts of head_dim_v, each with the scores
  /// anew.
  constexpr int largest_head_dim_v() const { return head_dim > 256 ? head_dim : head_dim_v; }
  constexpr std::size_t shared_bytes() const {
    return 2 * (tile_m * head_dim + stages * tile_n * (head_dim + head_dim_v));
  }
  /// Of one piece of a tile: o and lse.
  constexpr int partial_floats() const { return tile_m * (head_dim_v + 1); }
};

/// A compiled kernel.
struct ForwardVariant {
  ForwardConfig config;
  Status (*enqueue)(const Parameters& p, const TileOrder& order, const Tiles& tiles,
                    cudaStream_t stream);
};

/// Those of one head dim (one source file each), most preferred first.
std::span<const ForwardVariant> forward_d64();
std::span<const ForwardVariant> forward_d96();
std::span<const ForwardVariant> forward_d128();
std::span<const ForwardVariant> forward_d192();
std::span<const ForwardVariant> forward_d256();
std::span<const ForwardVariant> forward_d512();

}  // namespace tessera::cuda::sm80
