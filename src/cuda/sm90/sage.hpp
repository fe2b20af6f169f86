// The quantised forward kernels of row cuda_sage_sm90: which there are.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "cuda/algo/parameters.hpp"
#include "cuda/host/device.hpp"
#include "cuda/quant/operands.hpp"
#include "cuda/sm90/schedule.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda::sm90 {

/// How a block works (sage.cuh).
struct SageConfig {
  int head_dim, head_dim_v;  ///< Padded sizes: smaller ones are zero-filled in shared memory.
  int tile_m, tile_n;        ///< Queries of a block, 64 for each warpgroup; keys of one step.
  int q_stages, stages;      ///< Tiles of queries and of keys in shared memory.
  /// What it knows: scale > 0 and masks by position or block; smoothing of all of Q, too; all
  /// features and scales.
  enum Scope { plain, smooth_q, everything } scope;
  /// The keys of a last round's works are shared out (last_round.hpp). A variant of its own: where
  /// the loop over keys has no registers to spare, the code for it costs more than it gains.
  bool shares = false;

  constexpr bool extras() const { return scope == everything; }
  constexpr int warpgroups() const { return tile_m / 64; }  ///< That multiply.
  /// Of a tile of K: four for 64 keys, or one for each.
  constexpr int scale_bytes() const { return extras() ? 4 * tile_n : tile_n / 4; }
  /// Behind them: a number for each key.
  constexpr int offset_bytes() const { return scope == smooth_q ? 4 * tile_n : 0; }
  /// Tiles, of V with eight rows of ones, scales, and at the end barriers and messages.
  constexpr int ring_bytes() const {
    return q_stages * tile_m * head_dim +
           stages * (tile_n * (head_dim + head_dim_v + 8) + scale_bytes() + offset_bytes()) + 1024;
  }
  /// V's scales, for each consumer those of two works.
  constexpr int channel_bytes() const { return warpgroups() * 2 * 4 * head_dim_v; }
  /// Queries' scales, 16 for each consumer's part of a tile. With other granularities than these
  /// they are read where the quantise kernels have left them.
  constexpr int query_bytes() const { return extras() ? 0 : q_stages * warpgroups() * 64; }
  /// The block's own conversion of queries needs barriers and messages of its own.
  constexpr bool converts_queries() const { return !extras() && head_dim <= 128; }
  /// Of what a share leaves: o and four numbers for each row and thread beside it.
  constexpr std::size_t share_floats() const {
    return static_cast<std::size_t>(warpgroups()) * 128 * (head_dim_v / 2 + 8);
  }
  constexpr int ahead_bytes() const { return converts_queries() ? 64 : 0; }
  constexpr std::size_t shared_bytes() const {
    return ring_bytes() + channel_bytes() + query_bytes() + ahead_bytes();
  }
};

/// What a quantised kernel knows besides the problem.
struct SageOperands {
  QuantisedOperands tensors;       ///< q null: blocks convert queries themselves.
  DType out = DType::f16;          ///< That of q, k, v and o.
  const float* q_means = nullptr;  ///< [sequence, heads_q, head_dim], subtracted from queries.
  float levels = 127;              ///< Largest integer.
};

/// A compiled kernel.
struct SageVariant {
  SageConfig config;
  /// `counter`: the schedule's, 0. `sharing`: of works of equal lengths.
  Status (*enqueue)(const Parameters& p, const TensorMaps& maps, const SageOperands& operands,
                    int* counter, const Sharing& sharing, const DeviceInfo& device,
                    cudaStream_t stream);
};

/// Those of one head dim (one source file each).
std::span<const SageVariant> sage_d64();
std::span<const SageVariant> sage_d128();
std::span<const SageVariant> sage_d256();

}  // namespace tessera::cuda::sm90
