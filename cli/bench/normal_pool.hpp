// Random data for large tensors in device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device.hpp"
#include "tessera/tensor.hpp"

namespace tessera::cli::bench {

/// Some millions of normal numbers of a dtype on a device. Tensors that are filled from it repeat
/// them, which costs no time on the host and changes nothing about how fast a kernel is.
class NormalPool {
 public:
  /// Throws Error if memory is short.
  NormalPool(DType dtype, Device device);

  /// Fills a buffer of the pool's device; each `start` begins elsewhere in the pool.
  Status fill(const device::Buffer& buffer, std::size_t start) const;

 private:
  std::int64_t width_;
  device::Buffer numbers_;
};

}  // namespace tessera::cli::bench
