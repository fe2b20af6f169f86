// How a forward kernel of row cuda_sm90 is chosen and run.
#pragma once

#include <memory>
#include <string>

#include "core/registry.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/sm90/forward_variants.hpp"

namespace tessera::cuda::sm90 {

class Forward final : public CudaKernel {
 public:
  /// `general`: for tensors that the copy engine cannot read.
  Forward(const Problem& problem, const ForwardVariant& variant, const ForwardVariant& general)
      : CudaKernel(problem), variant_(variant), general_(general) {}
  std::string config() const override;
  std::size_t workspace_bytes() const override { return sizeof(int); }

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override;

 private:
  const ForwardVariant& variant_;
  const ForwardVariant& general_;
};

/// Whether a problem has anything that only variants with `extras` compute.
bool wants_extras(const Problem& problem);
/// The variant for tensors that the copy engine cannot read.
const ForwardVariant& general_forward(const Problem& problem);
/// Empty if there is a kernel for the forward pass of a problem, else why not.
std::string reject_forward(const Problem& problem);
std::unique_ptr<Kernel> make_forward(const Problem& problem);

}  // namespace tessera::cuda::sm90
