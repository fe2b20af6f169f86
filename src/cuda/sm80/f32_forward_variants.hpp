// The forward kernels of row cuda_sm80_f32 that are compiled.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "cuda/algo/parameters.hpp"
#include "cuda/algo/split_rows.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda::sm80 {

/// How a block works (f32_forward.cuh).
struct F32ForwardConfig {
  int head_dim, head_dim_v;  ///< Padded sizes: smaller ones are zero-filled in shared memory.
  int tile_m, tile_n;        ///< Queries of a block; keys of one step.
  int warps;
  int parts;    ///< Warps that share rows: each has a part of D in the scores, of Dv in the output.
  int stages;   ///< Key tiles in shared memory.
  bool kept_q;  ///< Q lies in registers, as terms; else in shared memory, as f32.
  bool extras;  ///< Softcap, bias, ALiBi, boolean mask, sink, dropout, scale ≤ 0.

  constexpr std::size_t shared_bytes() const {
    const int q = kept_q ? 0 : tile_m * head_dim * static_cast<int>(sizeof(float));
    return q + stages * tile_n * (head_dim + head_dim_v) * kTerms * 2;
  }
};

/// A compiled kernel. k and v of the parameters are split rows.
struct F32ForwardVariant {
  F32ForwardConfig config;
  Status (*enqueue)(const Parameters& p, cudaStream_t stream);
};

/// Those of one head dim (one source file each), most preferred first.
std::span<const F32ForwardVariant> f32_forward_d64();
std::span<const F32ForwardVariant> f32_forward_d128();
std::span<const F32ForwardVariant> f32_forward_d256();
std::span<const F32ForwardVariant> f32_forward_d512();

}  // namespace tessera::cuda::sm80
