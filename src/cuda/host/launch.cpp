#include "cuda/host/launch.hpp"

#include <string>

#include "cuda/host/device.hpp"

namespace tessera::cuda {
namespace {

/// What a kernel has to be allowed before it may have so much shared memory and such clusters.
cudaError_t allow(const void* kernel, std::size_t shared_bytes, int cluster) {
  constexpr std::size_t kSharedWithoutAsking = 48 * 1024;
  constexpr int kPortableCluster = 8;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedWithoutAsking) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess && cluster > kPortableCluster) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  return error;
}

cudaLaunchAttribute cluster_attribute(int blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

}  // namespace

int largest_cluster(const void* kernel, int threads, std::size_t shared_bytes, int most) {
  int cluster = allow(kernel, shared_bytes, most) == cudaSuccess ? most : 0;
  for (; cluster > 0; cluster /= 2) {
    cudaLaunchAttribute attribute = cluster_attribute(cluster);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(cluster));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int placed = 0;
    if (cudaOccupancyMaxActiveClusters(&placed, kernel, &config) == cudaSuccess && placed > 0)
      break;
  }
  cudaGetLastError();
  return cluster;
}

Status launch_kernel(std::string_view name, const void* kernel, const LaunchShape& shape,
                     void** arguments, cudaStream_t stream) {
  constexpr std::int64_t kMaxBlocks = 0x7fffffff;
  if (shape.blocks == 0) return {};
  if (shape.blocks > kMaxBlocks) {
    return Status(StatusCode::unsupported,
                  std::string(name) + ": more blocks than a CUDA grid can hold");
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.cluster > 1) attributes[count++] = cluster_attribute(shape.cluster);
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
  cudaError_t error = allow(kernel, shape.shared_bytes, shape.cluster);
  if (error == cudaSuccess) error = cudaLaunchKernelExC(&config, kernel, arguments);
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // an error that is reported is not left for the caller's next check
  return error_status(error, name);
}

}  // namespace tessera::cuda
