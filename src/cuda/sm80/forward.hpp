// How a forward kernel of row cuda_sm80 is chosen and run.
#pragma once

#include <memory>
#include <string>

#include "core/registry.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/sm80/forward_variants.hpp"

namespace tessera::cuda::sm80 {

class Forward final : public CudaKernel {
 public:
  Forward(const Problem& problem, const ForwardVariant& variant)
      : CudaKernel(problem), variant_(variant) {}
  std::string config() const override;
  std::size_t workspace_bytes() const override;

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override;

 private:
  Tiles tiles() const;

  const ForwardVariant& variant_;
};

/// Empty if there is a kernel for the forward pass of a problem, else why not.
std::string reject_forward(const Problem& problem);
std::unique_ptr<Kernel> make_forward(const Problem& problem);

}  // namespace tessera::cuda::sm80
