#include "io/array.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

namespace tessera::cli {
namespace {

template <typename T>
T load(const std::byte* element) {
  T value;
  std::memcpy(&value, element, sizeof value);
  return value;
}

DType real_dtype(ElementType type) {
  switch (type) {
    case ElementType::f16:
      return DType::f16;
    case ElementType::bf16:
      return DType::bf16;
    case ElementType::f64:
      return DType::f64;
    default:
      return DType::f32;
  }
}

std::int64_t load_integer(const std::byte* element, ElementType type) {
  switch (type) {
    case ElementType::i8:
      return load<std::int8_t>(element);
    case ElementType::i16:
      return load<std::int16_t>(element);
    case ElementType::i32:
      return load<std::int32_t>(element);
    case ElementType::i64:
      return load<std::int64_t>(element);
    default:
      return load<std::uint8_t>(element);
  }
}

// Calls visit(row-major index, element) for every element until it returns false.
template <typename Visit>
bool for_each_element(const ArrayView& array, std::int64_t elements, const Visit& visit) {
  const std::int64_t width = size_of(array.type);
  const std::byte* data = array.bytes.data();
  if (!array.column_major) {
    for (std::int64_t i = 0; i < elements; ++i) {
      if (!visit(i, data + i * width)) return false;
    }
    return true;
  }
  const int rank = static_cast<int>(array.sizes.size());
  std::array<std::int64_t, kMaxRank> stride{};
  std::array<std::int64_t, kMaxRank> index{};
  for (int d = 0; d < rank; ++d) stride[d] = d == 0 ? 1 : stride[d - 1] * array.sizes[d - 1];
  std::int64_t source = 0;
  for (std::int64_t i = 0; i < elements; ++i) {
    if (!visit(i, data + source * width)) return false;
    for (int d = rank - 1; d >= 0; --d) {
      source += stride[d];
      if (++index[d] < array.sizes[d]) break;
      source -= stride[d] * array.sizes[d];
      index[d] = 0;
    }
  }
  return true;
}

Status mismatch(const ArrayView& array, const char* expected) {
  return Status(StatusCode::invalid_argument,
                fmt::format("dtype {}: expected {}", name_of(array.type), expected));
}

Status fill_real(const ArrayView& array, HostTensor& tensor) {
  if (!is_real(array.type)) return mismatch(array, "floating point");
  const DType from = real_dtype(array.type);
  const std::int64_t width = size_of(tensor.dtype());
  if (from == tensor.dtype() && !array.column_major) {
    if (!array.bytes.empty()) std::memcpy(tensor.data(), array.bytes.data(), array.bytes.size());
    return {};
  }
  for_each_element(array, tensor.elements(), [&](std::int64_t i, const std::byte* element) {
    store_real(tensor.data() + i * width, tensor.dtype(), load_real(element, from));
    return true;
  });
  return {};
}

Status fill_integers(const ArrayView& array, HostTensor& tensor) {
  if (is_real(array.type) || array.type == ElementType::boolean) {
    return mismatch(array, "integers");
  }
  Status status;
  for_each_element(array, tensor.elements(), [&](std::int64_t i, const std::byte* element) {
    const std::int64_t value = load_integer(element, array.type);
    if (value < std::numeric_limits<std::int32_t>::min() ||
        value > std::numeric_limits<std::int32_t>::max()) {
      status = Status(StatusCode::invalid_argument,
                      fmt::format("element {} is {}: expected a value that fits i32", i, value));
      return false;
    }
    tensor.as<std::int32_t>()[i] = static_cast<std::int32_t>(value);
    return true;
  });
  return status;
}

Status fill_booleans(const ArrayView& array, HostTensor& tensor) {
  if (is_real(array.type)) return mismatch(array, "bool");
  Status status;
  for_each_element(array, tensor.elements(), [&](std::int64_t i, const std::byte* element) {
    const std::int64_t value = load_integer(element, array.type);
    if (array.type != ElementType::boolean && value != 0 && value != 1) {
      status = Status(StatusCode::invalid_argument,
                      fmt::format("element {} is {}: expected 0 or 1", i, value));
      return false;
    }
    tensor.as<std::uint8_t>()[i] = value != 0;
    return true;
  });
  return status;
}

}  // namespace

std::int64_t size_of(ElementType type) {
  switch (type) {
    case ElementType::f64:
    case ElementType::i64:
      return 8;
    case ElementType::f32:
    case ElementType::i32:
      return 4;
    case ElementType::f16:
    case ElementType::bf16:
    case ElementType::i16:
      return 2;
    default:
      return 1;
  }
}

const char* name_of(ElementType type) {
  constexpr std::array kNames = {"f16", "bf16", "f32", "f64", "i8",
                                 "i16", "i32",  "i64", "u8",  "bool"};
  return kNames[static_cast<std::size_t>(type)];
}

bool is_real(ElementType type) { return type <= ElementType::f64; }

namespace {

Result<std::int64_t> bytes_of(std::int64_t width, std::span<const std::int64_t> sizes) {
  // Sizes of 0 count as 1 for the limit, so that no stride of an empty array overflows either.
  std::int64_t limit = std::numeric_limits<std::int64_t>::max() / width;
  std::int64_t bytes = width;
  for (std::int64_t size : sizes) {
    if (size < 0) {
      return Status(StatusCode::invalid_argument,
                    fmt::format("size {}: expected none below 0", size));
    }
    limit /= std::max<std::int64_t>(size, 1);
    if (limit == 0) {
      return Status(StatusCode::invalid_argument,
                    "sizes: expected a product that fits 63 bits of bytes");
    }
    bytes *= size;
  }
  return bytes;
}

}  // namespace

Result<std::int64_t> bytes_of(ElementType type, std::span<const std::int64_t> sizes) {
  return bytes_of(size_of(type), sizes);
}

Result<HostTensor> to_host_tensor(const ArrayView& array, DType dtype) {
  if (array.sizes.empty() || array.sizes.size() > kMaxRank) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("{} dimensions: expected 1 to {}", array.sizes.size(), kMaxRank));
  }
  // An array of bytes may have sizes that no wider dtype can.
  Result<std::int64_t> bytes = bytes_of(size_of(dtype), array.sizes);
  if (!bytes.ok()) return bytes.status();
  HostTensor tensor(dtype, array.sizes);
  Status status;
  switch (dtype) {
    case DType::i32:
      status = fill_integers(array, tensor);
      break;
    case DType::boolean:
      status = fill_booleans(array, tensor);
      break;
    default:
      status = fill_real(array, tensor);
  }
  if (!status.ok()) return status;
  return tensor;
}

}  // namespace tessera::cli
