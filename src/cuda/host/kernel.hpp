// How CUDA kernels are planned; the same for every row.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/registry.hpp"

namespace tessera::cuda {

/// A planned CUDA kernel. `run` makes the problem's device current, sees that the stream belongs to
/// it, and restores the caller's device; it launches and returns.
class CudaKernel : public Kernel {
 public:
  explicit CudaKernel(const Problem& problem) : problem_(problem) {}
  Status run(const Arguments& arguments) const final;

 protected:
  /// Launches everything on `stream`. Must neither allocate nor synchronise.
  virtual Status enqueue(const Arguments& arguments, cudaStream_t stream) const = 0;

  const Problem problem_;
};

/// Empty if there is a CUDA device, else why not. What every CUDA row answers for the machine.
std::string no_device();

/// What every CUDA row rejects: a device that does not exist or that this build has no code for,
/// dtypes other than f32, f16 and bf16, precisions other than exact, sequences beyond kMaxSequence.
std::string reject_common(const Problem& problem);

}  // namespace tessera::cuda
