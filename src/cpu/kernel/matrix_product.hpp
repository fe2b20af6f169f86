// The products of the bf16 kernels, on matrix tiles or with dot products of pairs.
//
//   C[r][n] += Σ_k A[r][k] · B[k][n],   32 rows at a time, f32 sums
//
// As in the vector kernels queries lie in the columns, so that the softmax works lane by lane. A is
// [row][k] in bf16: K and V as packed once per key/value head. B is in pairs, [k / 2][column][2]:
// Q, dO, P and dS of one tile of queries. On tiles, 2 × 2 of them with sums and two each of A and B
// make four products for four loads, the best that eight tile registers allow. With vectors it is
// the f32 kernels' 8 × 3 accumulators, a pair of A in the place of an element.
#pragma once

#include "cpu/kernel/scores.hpp"

namespace tessera::cpu {

/// Rows of C that a product makes at a time, and keys of a strip: K and V are packed in strips.
inline constexpr std::int64_t kStrip = 32;
/// Columns of one tile of sums.
inline constexpr std::int64_t kTileColumns = 16;

TESSERA_INLINE std::int64_t whole_strips(std::int64_t n) {
  return (n + kStrip - 1) / kStrip * kStrip;
}

/// A operand: `stride` elements between rows, `step` between tiles along the depth, which follow
/// each other or are those with the numbers `places`.
struct MatrixA {
  const bf16* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t step = kStrip;
  const std::int32_t* places = nullptr;

  TESSERA_INLINE const bf16* at(std::int64_t k) const {
    const std::int64_t tile = k / kStrip;
    return data + (places == nullptr ? tile : places[tile]) * step;
  }
};

/// B operand: `columns` pairs in a row of pairs.
struct MatrixB {
  const bf16* data = nullptr;
  std::int64_t columns = 0;
};

/// What sums start from: zero, or an integer for each row of C.
template <bool kGiven>
struct SumStarts {};
template <>
struct SumStarts<true> {
  const std::int32_t* of_rows = nullptr;
};

/// Sums of 32 rows × 16 · N columns in tile registers 0 … 2 N − 1.
template <class S, int N>
struct MatrixAccumulator {
  static_assert(N == 1 || N == 2);

  TESSERA_INLINE static void clear() {
    S::template zero_tile<0>();
    S::template zero_tile<1>();
    if constexpr (N == 2) {
      S::template zero_tile<2>();
      S::template zero_tile<3>();
    }
  }
  TESSERA_INLINE static void load(const float* c, std::int64_t stride) {
    S::template load_tile<0>(c, stride * 4);
    S::template load_tile<1>(c + 16 * stride, stride * 4);
    if constexpr (N == 2) {
      S::template load_tile<2>(c + kTileColumns, stride * 4);
      S::template load_tile<3>(c + 16 * stride + kTileColumns, stride * 4);
    }
  }
  TESSERA_INLINE static void store(float* c, std::int64_t stride) {
    S::template store_tile<0>(c, stride * 4);
    S::template store_tile<1>(c + 16 * stride, stride * 4);
    if constexpr (N == 2) {
      S::template store_tile<2>(c + kTileColumns, stride * 4);
      S::template store_tile<3>(c + 16 * stride + kTileColumns, stride * 4);
    }
  }
  /// `depth` is a multiple of 32.
  TESSERA_INLINE static void multiply_add(MatrixA a, MatrixB b, std::int64_t depth) {
    for (std::int64_t k = 0; k < depth; k += kStrip) {
      const bf16* rows = a.at(k);
      S::template load_tile<6>(b.data, b.columns * 4);
      S::template load_tile<4>(rows, a.stride * 2);
      S::template multiply_tiles<0, 4, 6>();
      S::template load_tile<5>(rows + 16 * a.stride, a.stride * 2);
      S::template multiply_tiles<1, 5, 6>();
      if constexpr (N == 2) {
        S::template load_tile<7>(b.data + 2 * kTileColumns, b.columns * 4);
        S::template multiply_tiles<2, 4, 7>();
        S::template multiply_tiles<3, 5, 7>();
      }
      b.data += kStrip * b.columns;
    }
  }
};

/// Sums of 8 rows × C vectors by dot products of pairs, where there are no tiles.
template <class S, int C>
struct PairAccumulator {
  static constexpr int kRows = 8;
  typename S::V at[kRows][C];

  TESSERA_INLINE void start(SumStarts<false>, std::int64_t) {
    TESSERA_UNROLL for (int r = 0; r < kRows; ++r) {
      TESSERA_UNROLL for (int c = 0; c < C; ++c) at[r][c] = S::zero();
    }
  }
  TESSERA_INLINE void start(SumStarts<true> starts, std::int64_t row) {
    TESSERA_UNROLL for (int r = 0; r < kRows; ++r) {
      TESSERA_UNROLL for (int c = 0; c < C; ++c) at[r][c] = S::start_of(starts.of_rows[row + r]);
    }
  }
  TESSERA_INLINE void load(const float* p, std::int64_t stride) {
    TESSERA_UNROLL for (int r = 0; r < kRows; ++r) {
      TESSERA_UNROLL for (int c = 0; c < C; ++c) at[r][c] = S::load(p + r * stride + c * S::kLanes);
    }
  }
  TESSERA_INLINE void store(float* p, std::int64_t stride) const {
    TESSERA_UNROLL for (int r = 0; r < kRows; ++r) {
      TESSERA_UNROLL for (int c = 0; c < C; ++c) S::store(p + r * stride + c * S::kLanes, at[r][c]);
    }
  }
  TESSERA_INLINE void multiply_add(MatrixA a, MatrixB b, std::int64_t depth) {
    for (std::int64_t k = 0; k < depth; k += kStrip) {
      const bf16* rows = a.at(k);
      for (std::int64_t pair = 0; pair < kStrip / 2; ++pair) {
        typename S::V row[C];
        TESSERA_UNROLL for (int c = 0; c < C; ++c) {
          row[c] = S::load(reinterpret_cast<const float*>(b.data) + c * S::kLanes);
        }
        TESSERA_UNROLL for (int r = 0; r < kRows; ++r) {
          const typename S::V both = S::broadcast_pair(rows + r * a.stride + 2 * pair);
          TESSERA_UNROLL for (int c = 0; c < C; ++c) {
            at[r][c] = S::add_pair_products(at[r][c], both, row[c]);
          }
        }
        b.data += 2 * b.columns;
      }
    }
  }
};

/// Calls f.operator()<N>(first column) over `columns`, a multiple of 16: as many tiles or vectors
/// at a time as the accumulators are wide.
template <class S, class F>
TESSERA_INLINE void for_column_tiles(std::int64_t columns, F&& f) {
  std::int64_t column = 0;
  if constexpr (!S::kMatrixTiles) {
    for (; column + 3 * S::kLanes <= columns; column += 3 * S::kLanes) {
      f.template operator()<3>(column);
    }
  }
  for (; column + 2 * kTileColumns <= columns; column += 2 * kTileColumns) {
    f.template operator()<2>(column);
  }
  if (column < columns) f.template operator()<1>(column);
}

/// c[32][columns] = A · B, or += with kAdd.
template <class S, bool kAdd>
TESSERA_INLINE void multiply_strip(MatrixA a, MatrixB b, std::int64_t depth, std::int64_t columns,
                                   float* c, std::int64_t c_stride,
                                   SumStarts<S::kSumsHaveStarts> starts = {}) {
  for_column_tiles<S>(columns, [&]<int N>(std::int64_t column) {
    const MatrixB b_here = {b.data + 2 * column, b.columns};
    if constexpr (S::kMatrixTiles) {
      using Accumulator = MatrixAccumulator<S, N>;
      if constexpr (kAdd) {
        Accumulator::load(c + column, c_stride);
      } else {
        Accumulator::clear();
      }
      Accumulator::multiply_add(a, b_here, depth);
      Accumulator::store(c + column, c_stride);
    } else {
      for (std::int64_t row = 0; row < kStrip; row += PairAccumulator<S, N>::kRows) {
        PairAccumulator<S, N> sums;
        if constexpr (kAdd) {
          sums.load(c + row * c_stride + column, c_stride);
        } else {
          sums.start(starts, row);
        }
        sums.multiply_add({a.data + row * a.stride, a.stride, a.step, a.places}, b_here, depth);
        sums.store(c + row * c_stride + column, c_stride);
      }
    }
  });
}

/// Strips of 32 rows of A, `step` elements apart: the first `whole` of them in one place, the
/// others in another.
struct StripsOfRows {
  MatrixA first;
  MatrixA other;
  std::int64_t whole = 0;

  TESSERA_INLINE MatrixA at(std::int64_t strip) const {
    const MatrixA& from = strip < whole ? first : other;
    return {from.data + strip * from.step, from.stride};
  }
};

/// A product C = A · B or C += A · B of many strips of rows, done one step at a time: a step is 32
/// of the depth for 32 × 32 sums, 64 cycles of the tile multiplier, and few instructions. So it
/// runs in the shadow of vector code that it is strewn into.
template <class S>
struct ProductSeries {
  MatrixA a;
  MatrixB b;
  std::int64_t depth = 0;
  std::int64_t columns = 0;
  float* c = nullptr;
  std::int64_t c_stride = 0;
  std::int64_t strips = 0;   ///< Of 32 rows of C, …
  std::int64_t a_strip = 0;  ///< … whose A lies this many elements apart, …
  StripsOfRows rows;         ///< … or is that of the strips `places` of these.
  const std::int32_t* places = nullptr;
  bool add = false;
  [[no_unique_address]] SumStarts<S::kSumsHaveStarts> starts;
  std::int64_t column = 0;  ///< Where the next step is.
  std::int64_t k = 0;

  TESSERA_INLINE bool done() const { return strips == 0; }
  TESSERA_INLINE std::int64_t steps() const {
    return S::kMatrixTiles ? strips * ((columns + 31) / 32) * (depth / kStrip) : strips;
  }

  TESSERA_INLINE void step() {
    if constexpr (!S::kMatrixTiles) {
      if (add) {
        multiply_strip<S, true>(a, b, depth, columns, c, c_stride);
      } else {
        multiply_strip<S, false>(a, b, depth, columns, c, c_stride, starts);
      }
      next_strip();
    } else if (column + 2 * kTileColumns <= columns) {
      step_columns<2>();
    } else {
      step_columns<1>();
    }
  }
  TESSERA_INLINE void finish() {
    while (!done()) step();
  }

 private:
  template <int N>
  TESSERA_INLINE void step_columns() {
    using Accumulator = MatrixAccumulator<S, N>;
    if (k == 0) {
      if (add) {
        Accumulator::load(c + column, c_stride);
      } else {
        Accumulator::clear();
      }
    }
    Accumulator::multiply_add({a.at(k), a.stride}, {b.data + k * b.columns + 2 * column, b.columns},
                              kStrip);
    k += kStrip;
    if (k < depth) return;
    Accumulator::store(c + column, c_stride);
    k = 0;
    column += N * kTileColumns;
    if (column < columns) return;
    column = 0;
    next_strip();
  }

  TESSERA_INLINE void next_strip() {
    c += kStrip * c_stride;
    if constexpr (S::kSumsHaveStarts) starts.of_rows += kStrip;
    --strips;
    if (places == nullptr) {
      a.data += a_strip;
    } else if (strips > 0) {
      a = rows.at(*++places);
    }
  }
};

}  // namespace tessera::cpu
