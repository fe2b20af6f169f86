// Non-owning tensors: pointer, dtype, sizes, strides, device.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "tessera/export.h"

namespace tessera {

/// Element types. f16 is IEEE binary16, bf16 the upper half of binary32, boolean one byte (0 or 1).
/// The numeric values are those of the C ABI.
enum class DType : std::uint8_t { f32 = 0, f16 = 1, bf16 = 2, f64 = 3, i32 = 4, boolean = 5 };

/// Bytes of one element.
TESSERA_API std::int64_t size_of(DType dtype);
/// The dtype's name: "f32", "f16", "bf16", "f64", "i32" or "bool".
TESSERA_API const char* name_of(DType dtype);

enum class DeviceType : std::uint8_t { cpu = 0, cuda = 1 };

/// The name of a device type: "cpu" or "cuda".
TESSERA_API const char* name_of(DeviceType type);

/// Where a tensor lives. `index` counts devices of one type and is 0 for the CPU.
struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr int kMaxRank = 4;

/// A view of caller-owned memory. Strides are in elements and the last dimension's must be 1 (a
/// dimension of size 1 may have any stride); other strides may be anything that keeps the elements
/// of an output apart, so BHSD, BSHD and slices of a packed QKV tensor are all just strides. An
/// input may have stride 0 (a broadcast dimension). A default-constructed view (rank 0) means
/// "absent". Inputs are never written, although `data` is not const.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> size{};
  std::array<std::int64_t, kMaxRank> stride{};
  Device device;

  bool present() const { return rank > 0; }

  /// Row-major view: the last dimension varies fastest. At most kMaxRank sizes.
  static TensorView contiguous(const void* data, DType dtype,
                               std::initializer_list<std::int64_t> sizes, Device device = {}) {
    TensorView view;
    view.data = const_cast<void*>(data);
    view.dtype = dtype;
    view.device = device;
    for (std::int64_t size : sizes) view.size[view.rank++] = size;
    std::int64_t stride = 1;
    for (int d = view.rank - 1; d >= 0; --d) {
      view.stride[d] = stride;
      stride *= view.size[d];
    }
    return view;
  }

  /// The same memory with dimensions `a` and `b` exchanged: turns a `[B, S, H, D]` view into the
  /// `[B, H, S, D]` view of the same elements.
  TensorView transposed(int a, int b) const {
    TensorView view = *this;
    std::swap(view.size[a], view.size[b]);
    std::swap(view.stride[a], view.stride[b]);
    return view;
  }
};

}  // namespace tessera
