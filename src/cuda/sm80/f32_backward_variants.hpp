// The backward kernels of row cuda_sm80_f32 that are compiled.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "cuda/algo/parameters.hpp"
#include "cuda/algo/split_rows.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda::sm80 {

/// Gradients that a kernel computes.
enum class F32Gradients { d_q, d_kv, d_k, d_v };

/// How a block works (f32_backward.cuh, f32_backward_slices.cuh).
struct F32BackwardConfig {
  F32Gradients gradients;
  int head_dim;  ///< Of all tensors, padded: smaller ones are zero-filled in shared memory.
  int outer;     ///< Rows whose gradients a block computes.
  int inner;     ///< Rows of one step.
  int warps;
  int stages;           ///< Inner tiles in shared memory.
  bool slices = false;  ///< Warps own columns of all rows, and inner rows are not split beforehand.
  bool extras = false;  ///< Softcap, bias, ALiBi, mask, dropout, scale ≤ 0.

  constexpr F32BackwardConfig with_extras() const {
    F32BackwardConfig c = *this;
    c.extras = true;
    return c;
  }
  /// Tensors whose outer rows a block keeps: d_v needs no product with v.
  constexpr int outer_tiles() const { return gradients == F32Gradients::d_v ? 1 : 2; }
  constexpr std::size_t shared_bytes() const {
    if (slices) {
      const int elements = 2 * (outer + stages * inner) * head_dim;
      return (elements + 2 * warps * outer * inner + 2 * 2 * inner) * sizeof(float);
    }
    return head_dim * (outer_tiles() * outer * sizeof(float) + stages * 2 * inner * 2 * kTerms) +
           stages * 2 * inner * sizeof(float);
  }
};

/// What the kernels walk through, as terms; nothing if they read f32.
struct SplitInputs {
  Rows q, k, v, d_o;
};

/// A compiled kernel.
struct F32BackwardKernel {
  F32BackwardConfig config;
  Status (*enqueue)(const Parameters& p, const Gradients& g, const SplitInputs& terms,
                    cudaStream_t stream);
};

/// Kernels that compute all gradients together.
using F32BackwardVariant = std::span<const F32BackwardKernel>;

/// Those of one head dim (one source file each).
F32BackwardVariant f32_backward_d64(bool extras);
F32BackwardVariant f32_backward_d128(bool extras);
F32BackwardVariant f32_backward_d256(bool extras);
/// With extras always, which are little of the work there (f32_backward_slices.cu).
F32BackwardVariant f32_backward_d384();
F32BackwardVariant f32_backward_d512();

}  // namespace tessera::cuda::sm80
