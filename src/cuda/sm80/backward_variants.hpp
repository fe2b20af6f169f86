// The backward kernels of row cuda_sm80 that are compiled.
#pragma once

#include <cuda_runtime_api.h>

#include <limits>
#include <span>

#include "cuda/algo/parameters.hpp"
#include "cuda/algo/tile_order.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda::sm80 {

/// Shared memory for the way through the query tiles (QueryWalk in backward.cuh).
inline constexpr int kQueryWalkBytes = 1888;

/// How a block works (backward.cuh).
struct BackwardConfig {
  int head_dim;          ///< Padded: smaller ones are zero-filled in shared memory.
  int keys, queries;     ///< Keys of a block; queries of one step.
  int warps_k, warps_q;  ///< The warps' grid on a tile of scores.
  int warp_queries;      ///< Queries whose scores a warp has in registers at a time.
  int stages;            ///< Steps whose q, d_o and d_s shared memory holds.
  int blocks;            ///< Blocks that registers leave room for on a multiprocessor.
  bool extras = false;   ///< Softcap, bias, ALiBi, mask, dropout, scale ≤ 0.
  DType dtype = DType::bf16;
  int query_rows = 2;     ///< Warps along the queries of d_q.
  int barrier_bytes = 0;  ///< Shared memory behind all else.
  /// For chips that give a block less than this: the others have a config that needs more.
  int shared_below = std::numeric_limits<int>::max();

  constexpr BackwardConfig with(DType type, bool with_extras) const {
    BackwardConfig c = *this;
    c.dtype = type;
    c.extras = with_extras;
    if (with_extras) c.warp_queries = 16;  // what extras ask for takes registers of their own
    return c;
  }
  constexpr BackwardConfig unless_fits(const BackwardConfig& larger) const {
    BackwardConfig c = *this;
    c.shared_below = static_cast<int>(larger.shared_bytes());
    return c;
  }
  /// Whether it is the one for a chip that gives a block `bytes` of shared memory.
  constexpr bool suits(int bytes) const {
    return static_cast<int>(shared_bytes()) <= bytes && bytes < shared_below;
  }

  /// Of one piece of a tile: d_k and d_v.
  constexpr int partial_floats() const { return 2 * keys * head_dim; }

  constexpr std::size_t shared_bytes() const {
    const int score_tiles = stages + (warps_q > 1 ? 1 : 0);
    const int elements =
        2 * keys * head_dim + stages * 2 * queries * head_dim + score_tiles * keys * queries;
    return 2 * static_cast<std::size_t>(elements) + stages * 2 * queries * sizeof(float) +
           kQueryWalkBytes + barrier_bytes;
  }
};

/// d_q on its way: f32 accumulators of every query tile, zero at the start.
struct QueryAccumulators {
  float* data = nullptr;  ///< Null: d_q is not wanted.
  int tiles = 0;          ///< Of one head.
  int* turns = nullptr;   ///< [heads_q, tiles, warps]: blocks that have added. Null: any order.
  int* ticket = nullptr;  ///< Blocks that have started.
  int* ended = nullptr;   ///< Of each block: not 0 when it has added all.
};

/// A compiled kernel.
struct BackwardVariant {
  BackwardConfig config;
  Status (*enqueue)(const Parameters& p, const Gradients& g, const QueryAccumulators& accumulators,
                    const TileOrder& order, const Tiles& tiles, cudaStream_t stream);
};

/// Those of one head dim (one source file each).
std::span<const BackwardVariant> backward_d64();
std::span<const BackwardVariant> backward_d96();
std::span<const BackwardVariant> backward_d128();
std::span<const BackwardVariant> backward_d192();
std::span<const BackwardVariant> backward_d256();
std::span<const BackwardVariant> backward_d512();

}  // namespace tessera::cuda::sm80
