// Tensors that the command line owns: host memory, 64-byte aligned, row-major.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tessera/tensor.hpp"

namespace tessera::cli {

/// An owning row-major tensor. Movable; memory is uninitialised until something fills it.
/// A default-constructed one is absent, as a default TensorView is.
class HostTensor {
 public:
  HostTensor() = default;
  /// Allocates. `sizes` has 1 to kMaxRank entries, none negative. Throws Error if their product in
  /// bytes overflows 63 bits and std::bad_alloc if memory is short.
  HostTensor(DType dtype, std::vector<std::int64_t> sizes);

  bool present() const { return !sizes_.empty(); }
  DType dtype() const { return dtype_; }
  const std::vector<std::int64_t>& sizes() const { return sizes_; }
  int rank() const { return static_cast<int>(sizes_.size()); }
  std::int64_t size(int dimension) const { return sizes_[dimension]; }
  std::int64_t elements() const { return elements_; }
  std::int64_t bytes() const { return elements_ * size_of(dtype_); }

  std::byte* data() { return memory_.get(); }
  const std::byte* data() const { return memory_.get(); }
  /// The elements as T, which must be what `dtype` stores (float, double, std::int32_t,
  /// std::uint8_t, or std::uint16_t for the bits of f16 and bf16).
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(memory_.get());
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(memory_.get());
  }

  /// A view of the whole tensor; absent if this is. Valid as long as the memory is.
  TensorView view() const;

  /// Element `index` of the row-major order, of any dtype.
  double at(std::int64_t index) const;
  /// Rounds to nearest even. Integers and booleans must hold `value` exactly.
  void set(std::int64_t index, double value);

  /// A copy with another dtype; floating-point values are rounded once, to nearest even.
  HostTensor converted(DType dtype) const;

  /// Gives the same elements other sizes, of the same product.
  void reshape(std::vector<std::int64_t> sizes);

  /// Fills a floating-point tensor with mean + deviation · N(0, 1). Element i depends on `seed`,
  /// `stream` and i alone, whatever the sizes.
  void fill_normal(std::uint64_t seed, std::uint64_t stream, double mean = 0, double deviation = 1);
  /// Every element 0.
  void fill_zero();
  /// Every element NaN (floating point) or a value no result has (integers: the minimum, bool:
  /// 255).
  void poison();

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };

  DType dtype_ = DType::f32;
  std::vector<std::int64_t> sizes_;
  std::int64_t elements_ = 0;
  std::unique_ptr<std::byte, Free> memory_;
};

/// "[2, 16, 4096, 128]".
std::string sizes_to_string(const std::vector<std::int64_t>& sizes);

/// One value of a floating-point dtype, read from or rounded (once, to nearest even) into memory.
double load_real(const void* element, DType dtype);
void store_real(void* element, DType dtype, double value);

}  // namespace tessera::cli
