#include "host_tensor.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numbers>
#include <utility>

#include "core/half.hpp"
#include "core/philox.hpp"
#include "error.hpp"

namespace tessera::cli {
namespace {

constexpr std::align_val_t kAlignment{64};

// f64 → f32 rounded to odd: a later rounding to 11 or fewer bits is then the one correct rounding.
float to_odd_f32(double value) {
  const float nearest = static_cast<float>(value);
  if (!std::isfinite(nearest) || static_cast<double>(nearest) == value) {
    return nearest;
  }
  std::uint32_t bits = std::bit_cast<std::uint32_t>(nearest);
  if (std::abs(static_cast<double>(nearest)) > std::abs(value)) --bits;
  return std::bit_cast<float>(bits | 1u);
}

}  // namespace

double load_real(const void* element, DType dtype) {
  switch (dtype) {
    case DType::f32: {
      float x;
      std::memcpy(&x, element, sizeof x);
      return x;
    }
    case DType::f64: {
      double x;
      std::memcpy(&x, element, sizeof x);
      return x;
    }
    case DType::f16: {
      f16 x;
      std::memcpy(&x, element, sizeof x);
      return to_f32(x);
    }
    case DType::bf16: {
      bf16 x;
      std::memcpy(&x, element, sizeof x);
      return to_f32(x);
    }
    default:
      fail("dtype {} is not floating point", name_of(dtype));
  }
}

void store_real(void* element, DType dtype, double value) {
  switch (dtype) {
    case DType::f32: {
      const float x = static_cast<float>(value);
      std::memcpy(element, &x, sizeof x);
      return;
    }
    case DType::f64:
      std::memcpy(element, &value, sizeof value);
      return;
    case DType::f16: {
      f16 x;
      from_f32(to_odd_f32(value), x);
      std::memcpy(element, &x, sizeof x);
      return;
    }
    case DType::bf16: {
      bf16 x;
      from_f32(to_odd_f32(value), x);
      std::memcpy(element, &x, sizeof x);
      return;
    }
    default:
      fail("dtype {} is not floating point", name_of(dtype));
  }
}

std::string sizes_to_string(const std::vector<std::int64_t>& sizes) {
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

void HostTensor::Free::operator()(std::byte* memory) const {
  ::operator delete(memory, kAlignment);
}

HostTensor::HostTensor(DType dtype, std::vector<std::int64_t> sizes)
    : dtype_(dtype), sizes_(std::move(sizes)), elements_(1) {
  if (sizes_.empty() || sizes_.size() > kMaxRank) {
    fail("sizes {}: expected 1 to {} dimensions", sizes_to_string(sizes_), kMaxRank);
  }
  // Sizes of 0 count as 1 here, so that no stride of an empty tensor overflows either.
  std::int64_t product = 1;
  const std::int64_t limit = std::numeric_limits<std::int64_t>::max() / size_of(dtype_);
  for (std::int64_t size : sizes_) {
    if (size < 0) fail("sizes {}: expected none below 0", sizes_to_string(sizes_));
    if (product > limit / std::max<std::int64_t>(size, 1)) {
      fail("sizes {}: expected a product that fits 63 bits of bytes", sizes_to_string(sizes_));
    }
    product *= std::max<std::int64_t>(size, 1);
    elements_ *= size;
  }
  const auto bytes =
      static_cast<std::size_t>(std::max<std::int64_t>(elements_, 1) * size_of(dtype_));
  memory_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
}

TensorView HostTensor::view() const {
  TensorView view;
  view.data = memory_.get();
  view.dtype = dtype_;
  view.rank = rank();
  std::int64_t stride = 1;
  for (int d = rank() - 1; d >= 0; --d) {
    view.size[d] = sizes_[d];
    view.stride[d] = stride;
    stride *= sizes_[d];
  }
  return view;
}

double HostTensor::at(std::int64_t index) const {
  switch (dtype_) {
    case DType::i32:
      return as<std::int32_t>()[index];
    case DType::boolean:
      return as<std::uint8_t>()[index] != 0 ? 1 : 0;
    default:
      return load_real(memory_.get() + index * size_of(dtype_), dtype_);
  }
}

void HostTensor::set(std::int64_t index, double value) {
  switch (dtype_) {
    case DType::i32:
      as<std::int32_t>()[index] = static_cast<std::int32_t>(value);
      return;
    case DType::boolean:
      as<std::uint8_t>()[index] = value != 0;
      return;
    default:
      store_real(memory_.get() + index * size_of(dtype_), dtype_, value);
  }
}

HostTensor HostTensor::converted(DType dtype) const {
  if (!present()) return {};
  HostTensor result(dtype, sizes_);
  if (dtype == dtype_) {
    std::memcpy(result.data(), data(), static_cast<std::size_t>(bytes()));
    return result;
  }
  for (std::int64_t i = 0; i < elements_; ++i) result.set(i, at(i));
  return result;
}

void HostTensor::reshape(std::vector<std::int64_t> sizes) { sizes_ = std::move(sizes); }

void HostTensor::fill_normal(std::uint64_t seed, std::uint64_t stream, double mean,
                             double deviation) {
  // Box–Muller: one block of the counter gives elements 2n and 2n + 1.
  const PhiloxKey key{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  for (std::int64_t i = 0; i < elements_; i += 2) {
    const auto pair = static_cast<std::uint64_t>(i / 2);
    const PhiloxCounter words =
        philox4x32({static_cast<std::uint32_t>(pair), static_cast<std::uint32_t>(pair >> 32),
                    static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)},
                   key);
    const double u = (words[0] + 0.5) * 0x1p-32;  // in (0, 1)
    const double angle = 2 * std::numbers::pi * (words[1] * 0x1p-32);
    const double radius = std::sqrt(-2 * std::log(u));
    set(i, mean + deviation * radius * std::cos(angle));
    if (i + 1 < elements_) set(i + 1, mean + deviation * radius * std::sin(angle));
  }
}

void HostTensor::fill_zero() { std::memset(memory_.get(), 0, static_cast<std::size_t>(bytes())); }

void HostTensor::poison() {
  switch (dtype_) {
    case DType::i32:
      std::fill_n(as<std::int32_t>(), elements_, std::numeric_limits<std::int32_t>::min());
      return;
    case DType::boolean:
      std::memset(memory_.get(), 255, static_cast<std::size_t>(elements_));
      return;
    default:
      for (std::int64_t i = 0; i < elements_; ++i) {
        set(i, std::numeric_limits<double>::quiet_NaN());
      }
  }
}

}  // namespace tessera::cli
