// The backward kernels of row cuda_sm80_f32: which there are, and how one is chosen.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <span>
#include <string>

#include "core/registry.hpp"
#include "cuda/algo/parameters.hpp"
#include "cuda/algo/split_rows.hpp"
#include "cuda/host/launch.hpp"

namespace tessera::cuda::sm80 {

/// How a block of either kernel works (f32_backward.cuh).
struct F32BackwardConfig {
  int head_dim;  ///< Of all tensors, padded: smaller ones are zero-filled in shared memory.
  int outer;     ///< Rows whose gradients a block computes.
  int inner;     ///< Rows of one step.
  int warps;
  int stages;   ///< Inner tiles in shared memory.
  bool extras;  ///< Softcap, bias, ALiBi, mask, dropout, scale ≤ 0.

  constexpr F32BackwardConfig with_extras() const {
    F32BackwardConfig c = *this;
    c.extras = true;
    return c;
  }
  constexpr std::size_t shared_bytes() const {
    return 2 * head_dim * (outer * sizeof(float) + stages * inner * 2 * kTerms) +
           stages * 2 * inner * sizeof(float);
  }
};

/// What the kernels walk through, as terms.
struct SplitInputs {
  Rows q, k, v, d_o;
};

/// A compiled pair of kernels.
struct F32BackwardVariant {
  F32BackwardConfig config;
  Status (*enqueue)(const Parameters& p, const Gradients& g, const SplitInputs& terms,
                    cudaStream_t stream);
};

/// Those of one head dim (one source file each).
std::span<const F32BackwardVariant> f32_backward_d64();
std::span<const F32BackwardVariant> f32_backward_d128();

class F32Backward final : public CudaKernel {
 public:
  F32Backward(const Problem& problem, const F32BackwardVariant& variant)
      : CudaKernel(problem), variant_(variant) {}
  std::string config() const override;
  std::size_t workspace_bytes() const override;

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override;

 private:
  struct Workspace;
  Workspace workspace() const;

  const F32BackwardVariant& variant_;
};

/// Empty if there is a kernel for the backward pass of a problem, else why not.
std::string reject_f32_backward(const Problem& problem);
std::unique_ptr<Kernel> make_f32_backward(const Problem& problem);

}  // namespace tessera::cuda::sm80
