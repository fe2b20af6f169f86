#include "cuda/host/launch.hpp"

#include <string>

#include "cuda/host/device.hpp"

namespace tessera::cuda {

Status launch_kernel(std::string_view name, const void* kernel, const LaunchShape& shape,
                     void** arguments, cudaStream_t stream) {
  constexpr std::int64_t kMaxBlocks = 0x7fffffff;
  constexpr std::size_t kSharedWithoutAsking = 48 * 1024;
  constexpr int kPortableCluster = 8;
  if (shape.blocks == 0) return {};
  if (shape.blocks > kMaxBlocks) {
    return Status(StatusCode::unsupported,
                  std::string(name) + ": more blocks than a CUDA grid can hold");
  }
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
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > kSharedWithoutAsking) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_bytes));
  }
  if (error == cudaSuccess && shape.cluster > kPortableCluster) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error == cudaSuccess) error = cudaLaunchKernelExC(&config, kernel, arguments);
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // an error that is reported is not left for the caller's next check
  return error_status(error, name);
}

}  // namespace tessera::cuda
