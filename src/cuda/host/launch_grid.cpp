#include "cuda/host/launch_grid.hpp"

#include "cuda/host/device.hpp"

namespace tessera::cuda {

Status launch_grid(std::string_view name, const void* kernel, const Grid& grid, void** arguments,
                   cudaStream_t stream) {
  if (grid.blocks == 0) return {};
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = grid.early ? 1 : 0;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(grid.shared_bytes));
  if (error == cudaSuccess) error = cudaLaunchKernelExC(&config, kernel, arguments);
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // an error that is reported is not left for the caller's next check
  return error_status(error, name);
}

}  // namespace tessera::cuda
