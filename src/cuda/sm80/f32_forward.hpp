// How a forward kernel of row cuda_sm80_f32 is chosen and run.
#pragma once

#include <memory>
#include <string>

#include "core/registry.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/sm80/f32_forward_variants.hpp"

namespace tessera::cuda::sm80 {

class F32Forward final : public CudaKernel {
 public:
  F32Forward(const Problem& problem, const F32ForwardVariant& variant)
      : CudaKernel(problem), variant_(variant) {}
  std::string config() const override;
  std::size_t workspace_bytes() const override;

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override;

 private:
  const F32ForwardVariant& variant_;
};

/// The keys of a problem (`columns` of each row) as they are split.
SplitShape split_keys(const Problem& problem, std::int64_t columns);

/// Empty if there is a kernel for the forward pass of a problem, else why not.
std::string reject_f32_forward(const Problem& problem);
std::unique_ptr<Kernel> make_f32_forward(const Problem& problem);

}  // namespace tessera::cuda::sm80
