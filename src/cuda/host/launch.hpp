// How CUDA kernels are launched; the same for every row.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>

#include "cuda/host/device.hpp"

namespace tessera::cuda {

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
