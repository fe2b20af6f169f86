// Elements of tensors as doubles, whatever their dtype and strides.
#pragma once

#include <cstdint>

#include "core/half.hpp"
#include "tessera/tensor.hpp"

namespace tessera::reference {

/// Offset of element 0 of the row that query or key `token` of head h has in q, k, v, o or a
/// gradient of theirs: [B, H, S, D], or [T, H, D] where `token` counts across all sequences.
inline std::int64_t row_offset(const TensorView& t, std::int64_t b, std::int64_t h,
                               std::int64_t token) {
  if (t.rank == 3) return token * t.stride[0] + h * t.stride[1];
  return b * t.stride[0] + h * t.stride[1] + token * t.stride[2];
}

/// Offset of a query's element of lse or d_lse: [B, H, S] or [H, T].
inline std::int64_t lse_offset(const TensorView& t, std::int64_t b, std::int64_t h,
                               std::int64_t token) {
  if (t.rank == 2) return h * t.stride[0] + token * t.stride[1];
  return b * t.stride[0] + h * t.stride[1] + token * t.stride[2];
}

/// Offset of row (b, h, i) of bias or mask, [B|1, Hq|1, Sq|1, Skv]: a size of 1 is broadcast.
inline std::int64_t broadcast_offset(const TensorView& t, std::int64_t b, std::int64_t h,
                                     std::int64_t i) {
  return (t.size[0] == 1 ? 0 : b * t.stride[0]) + (t.size[1] == 1 ? 0 : h * t.stride[1]) +
         (t.size[2] == 1 ? 0 : i * t.stride[2]);
}

template <typename T>
void load_as(const void* data, std::int64_t offset, std::int64_t count, double* out) {
  const T* row = static_cast<const T*>(data) + offset;
  for (std::int64_t d = 0; d < count; ++d) {
    if constexpr (sizeof(T) == sizeof(double)) {
      out[d] = row[d];
    } else {
      out[d] = to_f32(row[d]);
    }
  }
}

template <typename T>
void store_as(void* data, std::int64_t offset, std::int64_t count, const double* in) {
  T* row = static_cast<T*>(data) + offset;
  for (std::int64_t d = 0; d < count; ++d) {
    if constexpr (sizeof(T) == sizeof(double)) {
      row[d] = in[d];
    } else {
      from_f32(static_cast<float>(in[d]), row[d]);
    }
  }
}

/// `count` consecutive elements of a floating-point tensor.
inline void load_row(const TensorView& t, std::int64_t offset, std::int64_t count, double* out) {
  switch (t.dtype) {
    case DType::f64:
      return load_as<double>(t.data, offset, count, out);
    case DType::f16:
      return load_as<f16>(t.data, offset, count, out);
    case DType::bf16:
      return load_as<bf16>(t.data, offset, count, out);
    default:
      return load_as<float>(t.data, offset, count, out);
  }
}

inline void store_row(const TensorView& t, std::int64_t offset, std::int64_t count,
                      const double* in) {
  switch (t.dtype) {
    case DType::f64:
      return store_as<double>(t.data, offset, count, in);
    case DType::f16:
      return store_as<f16>(t.data, offset, count, in);
    case DType::bf16:
      return store_as<bf16>(t.data, offset, count, in);
    default:
      return store_as<float>(t.data, offset, count, in);
  }
}

inline double load(const TensorView& t, std::int64_t offset) {
  double x;
  load_row(t, offset, 1, &x);
  return x;
}

inline void store(const TensorView& t, std::int64_t offset, double x) {
  store_row(t, offset, 1, &x);
}

/// x · y. Eight running sums instead of one, so that compilers may use SIMD without being allowed
/// to reorder additions; the order is the same on every machine.
inline double dot(const double* x, const double* y, std::int64_t count) {
  double sums[8] = {};
  std::int64_t d = 0;
  for (; d + 8 <= count; d += 8) {
    for (int u = 0; u < 8; ++u) sums[u] += x[d + u] * y[d + u];
  }
  double sum = 0;
  for (; d < count; ++d) sum += x[d] * y[d];
  for (double part : sums) sum += part;
  return sum;
}

/// y += a · x.
inline void add_scaled(double a, const double* x, std::int64_t count, double* y) {
  for (std::int64_t d = 0; d < count; ++d) y[d] += a * x[d];
}

}  // namespace tessera::reference
