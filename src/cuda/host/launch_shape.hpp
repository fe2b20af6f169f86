// Launches of kernels whose blocks form clusters, or that start while the kernel before them ends.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>
#include <tuple>

#include "cuda/host/device.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

struct LaunchShape {
  std::int64_t blocks;  ///< A multiple of `cluster`; 0 launches nothing.
  int threads;
  std::size_t shared_bytes = 0;
  int cluster = 1;  ///< Blocks of a cluster.
  /// Its blocks may start as soon as all of the kernel before it on the stream have called
  /// release_next_launch() or ended; what that kernel wrote is there after wait_for_launch().
  bool overlaps = false;
};

/// Launches `kernel` on `stream` of the current device. An error becomes a status that names it.
template <typename... Wanted, typename... Given>
Status launch(std::string_view name, void (*kernel)(Wanted...), const LaunchShape& shape,
              cudaStream_t stream, const Given&... arguments) {
  constexpr int kPortableCluster = 8;
  if (shape.blocks == 0) return {};
  const auto* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shape.shared_bytes));
  if (error == cudaSuccess && shape.cluster > kPortableCluster) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
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
    cudaLaunchAttribute attributes[2] = {};
    unsigned count = 0;
    if (shape.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[count++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (shape.overlaps) {
      cudaLaunchAttribute& attribute = attributes[count++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    error = cudaLaunchKernelExC(&config, function, pointers);
  }
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // an error that is reported is not left for the caller's next check
  return error_status(error, name);
}

}  // namespace tessera::cuda
