// Moving rows between the caller's tensors and the kernels' f32 scratch: conversion on load and
// store, transposition in registers.
#pragma once

#include "cpu/kernel/product.hpp"
#include "cpu/kernel/tile.hpp"
#include "cpu/simd/storage.hpp"

namespace tessera::cpu {

/// Calls f(typed pointer) for the rows' dtype.
template <class F>
TESSERA_INLINE void with_pointer(const Rows& rows, F&& f) {
  switch (rows.dtype) {
    case DType::f16:
      return f(static_cast<const f16*>(rows.data));
    case DType::bf16:
      return f(static_cast<const bf16*>(rows.data));
    default:
      return f(static_cast<const float*>(rows.data));
  }
}

template <class F>
TESSERA_INLINE void with_pointer(const OutputRows& rows, F&& f) {
  switch (rows.dtype) {
    case DType::f16:
      return f(static_cast<f16*>(rows.data));
    case DType::bf16:
      return f(static_cast<bf16*>(rows.data));
    default:
      return f(static_cast<float*>(rows.data));
  }
}

/// `count` < kLanes elements, zeros behind them.
template <class S, class T>
TESSERA_INLINE typename S::V load_partial(const T* p, std::int64_t count) {
  T buffer[S::kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return S::load_as_f32(buffer);
}

template <class S, class T>
TESSERA_INLINE typename S::V load_up_to(const T* p, std::int64_t count) {
  return count >= S::kLanes ? S::load_as_f32(p) : load_partial<S>(p, count);
}

template <class S, class T>
TESSERA_INLINE void store_up_to(T* p, typename S::V x, std::int64_t count) {
  if (count >= S::kLanes) {
    S::store_from_f32(p, x);
    return;
  }
  T buffer[S::kLanes];
  S::store_from_f32(buffer, x);
  for (std::int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

template <class S>
TESSERA_INLINE std::int64_t whole_vectors(std::int64_t n) {
  return (n + S::kLanes - 1) / S::kLanes * S::kLanes;
}

/// out[c][lane] = factor · in[lane][c] for `columns` columns from `column` on; lanes past `rows`
/// are zero up to a whole vector. `lanes` vectors of lanes are written per column.
template <class S>
void load_transposed(const Rows& in, std::int64_t rows, std::int64_t column, std::int64_t columns,
                     float factor, float* out, std::int64_t out_stride, int vectors) {
  with_pointer(in, [&](const auto* data) {
    const typename S::V f = S::set(factor);
    for (int v = 0; v < vectors; ++v) {
      const std::int64_t lane0 = static_cast<std::int64_t>(v) * S::kLanes;
      for (std::int64_t c = 0; c < columns; c += S::kLanes) {
        const std::int64_t width = columns - c;
        typename S::V block[S::kLanes];
        for (int r = 0; r < S::kLanes; ++r) {
          block[r] = lane0 + r < rows
                         ? load_up_to<S>(data + (lane0 + r) * in.stride + column + c, width)
                         : S::zero();
        }
        S::transpose(block);
        for (int r = 0; r < S::kLanes && r < width; ++r) {
          S::store(out + (c + r) * out_stride + lane0, S::mul(f, block[r]));
        }
      }
    }
  });
}

/// out[lane][c] = factor[lane] · in[c][lane]: the way back, for `rows` lanes.
template <class S>
void store_transposed(const float* in, std::int64_t in_stride, const float* factor,
                      std::int64_t rows, std::int64_t columns, const OutputRows& out) {
  with_pointer(out, [&](auto* data) {
    for (std::int64_t lane0 = 0; lane0 < rows; lane0 += S::kLanes) {
      const typename S::V f = S::load(factor + lane0);
      for (std::int64_t c = 0; c < columns; c += S::kLanes) {
        const std::int64_t width = columns - c;
        typename S::V block[S::kLanes];
        for (int r = 0; r < S::kLanes; ++r) {
          block[r] = r < width ? S::mul(f, S::load(in + (c + r) * in_stride + lane0)) : S::zero();
        }
        S::transpose(block);
        for (int r = 0; r < S::kLanes && lane0 + r < rows; ++r) {
          store_up_to<S>(data + (lane0 + r) * out.stride + c, block[r], width);
        }
      }
    }
  });
}

/// out[r][c] = in[r][c] as f32, zeros behind `columns` up to a whole vector.
template <class S>
void load_rows(const Rows& in, std::int64_t rows, std::int64_t columns, float* out,
               std::int64_t out_stride) {
  with_pointer(in, [&](const auto* data) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; c += S::kLanes) {
        S::store(out + r * out_stride + c, load_up_to<S>(data + r * in.stride + c, columns - c));
      }
    }
  });
}

/// in[r][c] as f32 by groups of columns, as VectorGroups makes them: a group is [height][its
/// vectors], so that a register tile reads its columns of row after row from neighbouring lines,
/// whatever the caller's rows are apart. Zeros behind `columns` up to a whole vector.
template <class S>
void load_column_panels(const Rows& in, std::int64_t rows, std::int64_t columns, float* out,
                        std::int64_t height) {
  const VectorGroups<S> groups((columns + S::kLanes - 1) / S::kLanes);
  for (std::int64_t g = 0; g < groups.count; ++g) {
    const std::int64_t column = groups.first(g) * S::kLanes;
    const std::int64_t width = groups.width(g) * S::kLanes;
    Rows from = in;
    with_pointer(in, [&](const auto* data) { from.data = data + column; });
    load_rows<S>(from, rows, columns - column < width ? columns - column : width,
                 out + column * height, width);
  }
}

template <class S>
void store_rows(const float* in, std::int64_t in_stride, std::int64_t rows, std::int64_t columns,
                OutputRows out) {
  with_pointer(out, [&](auto* data) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; c += S::kLanes) {
        // Accumulators are padded to whole vectors, or `columns` is a multiple of them.
        store_up_to<S>(data + r * out.stride + c, S::load(in + r * in_stride + c), columns - c);
      }
    }
  });
}

/// Rows that far apart, a multiple of this many elements, fall into the same few cache sets.
inline constexpr std::int64_t kCrowdedStride = 256;

/// f32 rows of keys [begin, end): the caller's own memory where it is f32 and its rows do not crowd
/// the caches, else a copy in `scratch`.
struct KeyRows {
  const float* data = nullptr;
  std::int64_t stride = 0;
};

template <class S>
KeyRows key_rows(const Rows& in, std::int64_t begin, std::int64_t end, std::int64_t columns,
                 float* scratch) {
  const bool crowded = in.stride > columns && in.stride % kCrowdedStride == 0;
  if (in.dtype == DType::f32 && !crowded) {
    return {static_cast<const float*>(in.data) + begin * in.stride, in.stride};
  }
  Rows from = in;
  with_pointer(in, [&](const auto* data) { from.data = data + begin * in.stride; });
  const std::int64_t stride = whole_vectors<S>(columns);
  load_rows<S>(from, end - begin, columns, scratch, stride);
  return {scratch, stride};
}

}  // namespace tessera::cpu
