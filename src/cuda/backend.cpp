// The CUDA backend: devices, memory, and the table of CUDA rows.
#include "cuda/backend.hpp"

#include <cuda_runtime_api.h>

#include <array>

#include "core/format.hpp"
#include "cuda/generic/generic.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/sm80/row.hpp"
#include "cuda/sm80/split_kv.hpp"
#include "cuda/sm90/row.hpp"

namespace tessera::cuda {
namespace {

std::string absent() { return {}; }

std::vector<std::string> describe() {
  if (const std::string reason = no_device(); !reason.empty()) return {"cuda: " + reason};
  std::vector<std::string> lines;
  for (int i = 0; i < device_count(); ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    lines.push_back(formatted("cuda:{}: {}, sm_{}{}, {} SMs, {:.1f} GiB", i, properties.name,
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
  static const std::array kRows = {sm90::kSageRow,    sm80::kSageRow,      sm90::kSplitKvRow,
                                   sm80::kSplitKvRow, sm90::kSm90Row,      sm80::kSm80Row,
                                   sm80::kSm80F32Row, generic::kGenericRow};
  static const Backend kBackend = {DeviceType::cuda, kRows,    absent,  device_count,
                                   describe,         allocate, release, /*host_readable=*/false,
                                   executor};
  return kBackend;
}

}  // namespace tessera::cuda
