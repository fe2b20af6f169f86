// The CPU's share, the same in builds with and without CUDA.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <string>

#include "device/device.hpp"

namespace tessera::device {

inline constexpr std::size_t kAlignment = 64;

/// Null if memory is short.
inline void* allocate_host(std::size_t bytes) {
  return std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
}

inline bool on_host(Device device) { return device.type == DeviceType::cpu; }

inline Status short_of_memory(std::size_t bytes, Device device) {
  const std::string name = on_host(device) ? "cpu" : "cuda:" + std::to_string(device.index);
  return {StatusCode::out_of_memory,
          "memory: " + std::to_string(bytes) + " bytes on " + name + ", expected that many free"};
}

}  // namespace tessera::device
