#include "cuda/host/device.hpp"

#include "core/format.hpp"

namespace tessera::cuda {
namespace {

DeviceInfo read_device(int device) {
  DeviceInfo info;
  int major = 0, minor = 0;
  const auto read = [device](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  };
  if (read(major, cudaDevAttrComputeCapabilityMajor) &&
      read(minor, cudaDevAttrComputeCapabilityMinor) &&
      read(info.multiprocessors, cudaDevAttrMultiProcessorCount) &&
      read(info.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
      read(info.l2_bytes, cudaDevAttrL2CacheSize)) {
    info.compute_capability = 10 * major + minor;
  } else {
    cudaGetLastError();
  }
  return info;
}

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  ok_ = cudaGetDevice(&previous_) == cudaSuccess;
  if (ok_ && previous_ == device) {
    previous_ = -1;  // nothing to restore
  } else if (ok_ && cudaSetDevice(device) != cudaSuccess) {
    ok_ = false;
    previous_ = -1;
  }
  if (!ok_) cudaGetLastError();
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

int device_count() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess) return devices;
  cudaGetLastError();
  return 0;
}

const DeviceInfo& device_info(int device) {
  static PerDevice<DeviceInfo> infos;
  return infos.get(device, read_device);
}

Status error_status(cudaError_t error, std::string_view what) {
  return Status(StatusCode::device_error,
                formatted("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error)));
}

}  // namespace tessera::cuda
