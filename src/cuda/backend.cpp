// The CUDA backend: devices, memory, and the table of CUDA rows (none yet).
#include "cuda/backend.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

namespace tessera::cuda {
namespace {

/// Makes `device` current for a scope and restores the caller's device after it.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    ok_ = cudaGetDevice(&previous_) == cudaSuccess && cudaSetDevice(device) == cudaSuccess;
  }
  ~DeviceGuard() {
    if (ok_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  bool ok() const { return ok_; }

 private:
  int previous_ = 0;
  bool ok_ = false;
};

std::string absent() { return "the CUDA backend has no kernels yet"; }

int count() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess) return devices;
  cudaGetLastError();
  return 0;
}

std::vector<std::string> describe() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return {fmt::format("cuda: no device ({})",
                        error != cudaSuccess ? cudaGetErrorString(error) : "none found")};
  }
  std::vector<std::string> lines;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    lines.push_back(fmt::format("cuda:{}: {}, sm_{}{}, {} SMs, {:.1f} GiB", i, properties.name,
                                properties.major, properties.minor, properties.multiProcessorCount,
                                static_cast<double>(properties.totalGlobalMem) / (1 << 30)));
  }
  return lines;
}

void* allocate(std::size_t bytes, Device device, void* stream) {
  const DeviceGuard guard(device.index);
  void* memory = nullptr;
  if (!guard.ok() ||
      cudaMallocAsync(&memory, bytes, static_cast<cudaStream_t>(stream)) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return memory;
}

void release(void* memory, Device device, void* stream) {
  const DeviceGuard guard(device.index);
  if (guard.ok()) cudaFreeAsync(memory, static_cast<cudaStream_t>(stream));
}

Executor* executor(Executor* requested) { return requested; }

}  // namespace

const Backend& backend() {
  static const Backend kBackend = {DeviceType::cuda, {},       absent,  count,
                                   describe,         allocate, release, /*host_readable=*/false,
                                   executor};
  return kBackend;
}

}  // namespace tessera::cuda
