// The host's side of a device: which one is current, what it is, and errors as statuses.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>
#include <string>
#include <string_view>

#include "tessera/status.hpp"

namespace tessera::cuda {

/// Makes `device` current for a scope and restores the caller's device after it.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  bool ok() const { return ok_; }

 private:
  int previous_ = -1;
  bool ok_ = false;
};

/// A fact about each device, read once, then cached for the life of the process.
template <typename Fact>
class PerDevice {
 public:
  /// read(device) is called the first time. Devices that CUDA does not number so have no facts.
  template <typename Read>
  const Fact& get(int device, Read read) {
    static const Fact kNone{};
    if (device < 0 || device >= kMaxDevices) return kNone;
    std::call_once(read_[device], [&] { facts_[device] = read(device); });
    return facts_[device];
  }

 private:
  static constexpr int kMaxDevices = 64;
  std::array<Fact, kMaxDevices> facts_{};
  std::array<std::once_flag, kMaxDevices> read_;
};

/// What kernels are planned for, once per device.
struct DeviceInfo {
  int compute_capability = 0;  ///< 10 · major + minor; 0 if the device could not be read.
  int multiprocessors = 0;
  int shared_bytes = 0;  ///< Shared memory one block may ask for.
  int l2_bytes = 0;
};
const DeviceInfo& device_info(int device);

/// Devices of this machine; 0 without a driver.
int device_count();

/// device_error with `what` and the runtime's words.
Status error_status(cudaError_t error, std::string_view what);

}  // namespace tessera::cuda
