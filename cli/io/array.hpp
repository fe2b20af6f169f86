// An array inside a file's bytes, as a reader found it, and its way into a tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "host_tensor.hpp"
#include "tessera/status.hpp"

namespace tessera::cli {

/// Element types that the readers know; little-endian. boolean is one byte, 0 or not.
enum class ElementType : std::uint8_t { f16, bf16, f32, f64, i8, i16, i32, i64, u8, boolean };

std::int64_t size_of(ElementType type);
/// "f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64", "u8" or "bool".
const char* name_of(ElementType type);
bool is_real(ElementType type);

/// Non-owning. A reader that returns one has checked that `bytes` holds exactly the product of
/// `sizes` elements; the memory need not be aligned.
struct ArrayView {
  ElementType type = ElementType::f32;
  std::vector<std::int64_t> sizes;
  bool column_major = false;  ///< Fortran order: the first dimension varies fastest.
  std::span<const std::byte> bytes;
};

/// The product of `sizes` times the element size, or an error if it overflows 63 bits. A size below
/// 0 is an error, too.
Result<std::int64_t> bytes_of(ElementType type, std::span<const std::int64_t> sizes);

/// A row-major copy as `dtype`. Floating-point types become one another, rounded once to nearest
/// even; integers become i32 if their values fit; booleans, and integers that are all 0 or 1,
/// become booleans. Anything else, and a rank outside 1 … kMaxRank, is an error.
Result<HostTensor> to_host_tensor(const ArrayView& array, DType dtype);

}  // namespace tessera::cli
