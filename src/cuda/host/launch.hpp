// How CUDA kernels are planned and launched; the same for every row.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>
#include <tuple>

#include "core/registry.hpp"
#include "cuda/host/device.hpp"

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

/// Launches `kernel` on `stream` of the current device. `blocks` = 0 launches nothing. An error
/// becomes a status that names the kernel.
template <typename... Wanted, typename... Given>
Status launch(std::string_view name, void (*kernel)(Wanted...), std::int64_t blocks, int threads,
              std::size_t shared_bytes, cudaStream_t stream, const Given&... arguments) {
  constexpr std::int64_t kMaxBlocks = 0x7fffffff;
  constexpr std::size_t kSharedWithoutAsking = 48 * 1024;
  if (blocks == 0) return {};
  if (blocks > kMaxBlocks) {
    return Status(StatusCode::unsupported,
                  std::string(name) + ": more blocks than a CUDA grid can hold");
  }
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedWithoutAsking) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    std::tuple<Wanted...> values(arguments...);
    void* pointers[sizeof...(Wanted)];
    std::apply(
        [&](auto&... value) {
          std::size_t n = 0;
          ((pointers[n++] = &value), ...);
        },
        values);
    error =
        cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(threads), pointers, shared_bytes, stream);
  }
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // an error that is reported is not left for the caller's next check
  return error_status(error, name);
}

}  // namespace tessera::cuda
