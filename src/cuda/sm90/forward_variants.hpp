// The forward kernels of row cuda_sm90 that are compiled.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "cuda/algo/parameters.hpp"
#include "cuda/host/device.hpp"
#include "cuda/sm90/schedule.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda::sm90 {

inline constexpr int kOutputRows = 16;  ///< Rows of a warp.

/// How a block works (forward.cuh).
struct ForwardConfig {
  DType dtype;
  int head_dim, head_dim_v;  ///< Padded sizes: smaller ones are zero-filled in shared memory.
  int tile_m, tile_n;        ///< Queries of a block, 64 for each warpgroup; keys of one step.
  int q_stages;              ///< Query tiles in shared memory: 2 to have the next one in time.
  int k_stages, v_stages;    ///< Tiles of keys and of values there.
  bool extras;  ///< Softcap, bias, ALiBi, boolean mask, sink, scale ≤ 0; any strides.
  bool passes_over = false;  ///< Warpgroups leave out key tiles that none of their rows sees.
  bool turns = true;         ///< Consumers start their products in turns.
  bool packed = false;       ///< Short queries, keys shared out (packed.cuh).

  /// Whether o goes to memory by the copy engine, from where Q was: another Q is there by then.
  constexpr bool stages_output() const { return q_stages == 2 && head_dim_v <= head_dim; }
  /// Whether row sums are tested in place of maxima (consumer.cuh), which holds K for longer.
  constexpr bool tests_sums() const { return head_dim <= 64 && !extras && !packed; }
  constexpr int warpgroups() const { return tile_m / 64; }  ///< That multiply.
  /// Columns of a panel of a tile (SharedTile).
  constexpr int panel() const { return head_dim % 64 == 0 && head_dim_v % 64 == 0 ? 64 : 32; }
  /// Tiles, and at the end barriers and messages (forward.cuh).
  constexpr std::size_t shared_bytes() const {
    return 2 * (q_stages * tile_m * head_dim +
                tile_n * (k_stages * head_dim + v_stages * head_dim_v)) +
           1024;
  }
};

/// The copy engine's view of the tensors: o in boxes of a warp's rows.
struct ForwardMaps : TensorMaps {
  CUtensorMap o;
};

/// A compiled kernel.
struct ForwardVariant {
  ForwardConfig config;
  /// `maps` null: threads copy instead of the engine; `extras` only.
  /// `counter`: memory for the schedule's.
  Status (*enqueue)(const Parameters& p, const ForwardMaps* maps, int* counter,
                    const DeviceInfo& device, cudaStream_t stream);
};

/// Those of one head dim (one source file each), most preferred first.
std::span<const ForwardVariant> forward_d64();
std::span<const ForwardVariant> forward_d96();
std::span<const ForwardVariant> forward_d128();
std::span<const ForwardVariant> forward_d192();
std::span<const ForwardVariant> forward_d256();

}  // namespace tessera::cuda::sm90
