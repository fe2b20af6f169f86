#include "cuda/host/kernel.hpp"

#include "core/format.hpp"
#include "cuda/algo/parameters.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/probe.hpp"
#include "cuda/host/reject.hpp"

namespace tessera::cuda {
namespace {

std::string no_code_for(int device) {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  if (guard.ok() && cudaFuncGetAttributes(&attributes, probe_kernel()) == cudaSuccess) return {};
  const cudaError_t error = cudaGetLastError();
  const int chip = device_info(device).compute_capability;
  return formatted(
      "cuda:{} (sm_{}): this build has no code for it ({}); it was built for {}, "
      "configure with -DCMAKE_CUDA_ARCHITECTURES={}",
      device, chip, cudaGetErrorString(error), TESSERA_CUDA_ARCHITECTURES, chip);
}

}  // namespace

std::string no_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return {};
  cudaGetLastError();
  return formatted("no CUDA device ({})",
                   error == cudaSuccess ? "none found" : cudaGetErrorString(error));
}

std::string reject_common(const Problem& problem) {
  if (problem.quantised()) {
    return formatted("precision {}: this row is exact", name_of(problem.precision));
  }
  return reject_anywhere(problem);
}

std::string reject_anywhere(const Problem& problem) {
  const int count = device_count();
  if (problem.device.index < 0 || problem.device.index >= count) {
    return formatted("cuda:{}: there are {} CUDA devices, counted from 0", problem.device.index,
                     count);
  }
  if (problem.dtype != DType::f32 && problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    return formatted("computes f32, f16 and bf16, not {}", name_of(problem.dtype));
  }
  if (problem.seq_q > kMaxSequence || problem.seq_kv > kMaxSequence) {
    return formatted("sequences of at most {} rows (packed: tokens)", kMaxSequence);
  }
  return no_code_for(problem.device.index);
}

Status CudaKernel::run(const Arguments& arguments) const {
  const DeviceGuard guard(problem_.device.index);
  if (!guard.ok()) {
    return Status(StatusCode::device_error,
                  formatted("cuda:{}: cannot be made current", problem_.device.index));
  }
  const auto stream = static_cast<cudaStream_t>(arguments.stream);
#if CUDART_VERSION >= 12080
  // A stream that records a graph may not be asked for its device.
  int device = problem_.device.index;
  if (stream != nullptr && stream != cudaStreamLegacy && stream != cudaStreamPerThread) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaError_t error = cudaStreamIsCapturing(stream, &capture);
    if (error == cudaSuccess && capture == cudaStreamCaptureStatusNone) {
      error = cudaStreamGetDevice(stream, &device);
    }
    if (error != cudaSuccess) {
      cudaGetLastError();
      return error_status(error, "stream");
    }
  }
  if (device != problem_.device.index) {
    return Status(StatusCode::invalid_argument,
                  formatted("stream: of cuda:{}, expected a stream of cuda:{}, where the tensors "
                            "are",
                            device, problem_.device.index));
  }
#endif
  return enqueue(arguments, stream);
}

}  // namespace tessera::cuda
