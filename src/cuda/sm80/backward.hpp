// How a backward kernel of row cuda_sm80 is chosen and run.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>
#include <string>

#include "core/registry.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/sm80/backward_variants.hpp"

namespace tessera::cuda::sm80 {

/// The first variant of a list that takes the problem, with head dims ascending; null: none.
const BackwardVariant* choose_backward(
    const Problem& problem, std::initializer_list<std::span<const BackwardVariant>> lists);

class Backward final : public CudaKernel {
 public:
  Backward(const Problem& problem, const BackwardVariant& variant)
      : CudaKernel(problem), variant_(variant) {}
  std::string config() const override;
  std::size_t workspace_bytes() const override;

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override;

 private:
  struct Workspace;
  Workspace workspace() const;
  Tiles tiles() const;
  int splits() const;

  const BackwardVariant& variant_;
};

/// Empty if there is a kernel for the backward pass of a problem, else why not.
std::string reject_backward(const Problem& problem);
std::unique_ptr<Kernel> make_backward(const Problem& problem);

}  // namespace tessera::cuda::sm80
