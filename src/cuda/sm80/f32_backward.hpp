// How a backward kernel of row cuda_sm80_f32 is chosen and run.
#pragma once

#include <memory>
#include <string>

#include "core/registry.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/sm80/f32_backward_variants.hpp"

namespace tessera::cuda::sm80 {

class F32Backward final : public CudaKernel {
 public:
  F32Backward(const Problem& problem, F32BackwardVariant variant)
      : CudaKernel(problem), variant_(variant) {}
  std::string config() const override;
  std::size_t workspace_bytes() const override;

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override;

 private:
  struct Workspace;
  bool reads_terms() const;
  Workspace workspace() const;

  const F32BackwardVariant variant_;
};

/// Empty if there is a kernel for the backward pass of a problem, else why not.
std::string reject_f32_backward(const Problem& problem);
std::unique_ptr<Kernel> make_f32_backward(const Problem& problem);

}  // namespace tessera::cuda::sm80
