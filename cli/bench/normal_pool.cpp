#include "bench/normal_pool.hpp"

#include <algorithm>

#include "error.hpp"
#include "host_tensor.hpp"

namespace tessera::cli::bench {
namespace {

// Not a multiple of any row's length, so that no two heads are the same.
constexpr std::int64_t kNumbers = (1 << 22) - 3;
constexpr std::uint64_t kSeed = 1;

std::byte* at(const device::Buffer& buffer, std::size_t offset) {
  return static_cast<std::byte*>(buffer.data()) + offset;
}

}  // namespace

NormalPool::NormalPool(DType dtype, Device device)
    : width_(size_of(dtype)),
      numbers_(require(device::Buffer::allocate(kNumbers * width_, device))) {
  HostTensor host(dtype, {kNumbers});
  host.fill_normal(kSeed, 0);
  require(device::copy({numbers_.data(), device}, {host.data(), {}}, numbers_.bytes()));
}

Status NormalPool::fill(const device::Buffer& buffer, std::size_t start) const {
  constexpr std::size_t kStep = 1000003;
  const Device device = numbers_.device();
  std::size_t from = start * kStep % kNumbers * width_;
  for (std::size_t filled = 0; filled < buffer.bytes();) {
    const std::size_t bytes = std::min(numbers_.bytes() - from, buffer.bytes() - filled);
    Status status = device::copy({at(buffer, filled), device}, {at(numbers_, from), device}, bytes);
    if (!status.ok()) return status;
    filled += bytes;
    from = 0;
  }
  return {};
}

}  // namespace tessera::cli::bench
