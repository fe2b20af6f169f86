// Forward for few query rows (decoding): one head against one part of the keys it may see.
//
//   for each block of keys                                  K and V from memory, once
//     for each group of kLanes keys, for each row
//       kLanes dot products along the head dim, summed over the lanes by a transposition
//     S transposed to [key][row]                            the lanes are rows: the score rules'
//     layout masks, m, P = exp2(S − m), l for each row: O[row][d] = O · α + Σ P[key][row] ·
//     V[key][d]
//
// The head dim lies in the lanes, not the queries: with one query the tile of forward.hpp would use
// one lane of sixteen. Work per key and row is 2 D / lanes multiply-adds, so memory bounds it. The
// keys of a head are shared out in parts; a part leaves m, l and its unnormalised O, and the parts
// are merged by their maxima.
#pragma once

#include "cpu/kernel/forward.hpp"

namespace tessera::cpu {

/// What a part of the keys leaves of one head.
struct PartialRows {
  float* m;  ///< [lanes] maximum, base 2; −inf where nothing was seen.
  float* l;  ///< [lanes] sum of weights.
  float* o;  ///< [rows][head_dim_v padded]
  std::int64_t padded_v;
  std::int64_t floats;

  template <class S>
  static PartialRows carve(const Blocking& b, std::int64_t rows, float* base) {
    Carver carver(base);
    PartialRows x;
    x.padded_v = whole_vectors<S>(b.head_dim_v);
    x.m = carver.floats(S::kLanes);
    x.l = carver.floats(S::kLanes);
    x.o = carver.floats(rows * x.padded_v);
    x.floats = carver.used();
    return x;
  }
};

struct FewRowsScratch {
  float* q;     ///< [rows][head_dim padded], times q_scale.
  float* s;     ///< [block_kv][lanes] scores, then P.
  float* bias;  ///< [block_kv][lanes]
  std::int64_t padded;
  std::int64_t floats;

  template <class S>
  static FewRowsScratch carve(const Blocking& b, float* base) {
    Carver carver(base);
    FewRowsScratch x;
    x.padded = whole_vectors<S>(b.head_dim);
    x.q = carver.floats(b.tile_q * x.padded);
    x.s = carver.floats(whole_vectors<S>(b.block_kv) * S::kLanes);
    x.bias = carver.floats(b.block_kv * S::kLanes);
    x.floats = carver.used();
    return x;
  }
};

/// Rows that will be read soon, asked for while others are worked on: 16 rows side by side are more
/// streams than a processor follows by itself.
class ComingRows {
 public:
  ComingRows(const Rows& rows, std::int64_t first, std::int64_t count, std::int64_t columns)
      : count_(count), left_(count) {
    const std::int64_t size = rows.dtype == DType::f32 ? 4 : 2;
    stride_ = rows.stride * size;
    bytes_ = columns * size;
    data_ = static_cast<const char*>(rows.data) + first * stride_;
  }

  /// All of a row: beside one row of queries, which waits for nothing but memory.
  TESSERA_INLINE void prefetch(std::int64_t row) const {
    for (std::int64_t i = 0; i < bytes_; i += kLine) __builtin_prefetch(data_ + row * stride_ + i);
  }

  /// For several rows of queries, whose products take as long as memory does: a few lines in each
  /// of so many steps of them. Whole rows at a time would fill the places for lines on their way,
  /// and loads of what is there already would stand behind them.
  void spread(std::int64_t steps) {
    const std::int64_t lines = count_ * ((bytes_ + kLine - 1) / kLine);
    lines_of_step_ = steps > 0 ? (lines + steps - 1) / steps : 0;
  }
  TESSERA_INLINE void step() {
    for (std::int64_t n = lines_of_step_; n > 0 && left_ > 0; --n) {
      __builtin_prefetch(data_ + offset_);
      offset_ += kLine;
      if (offset_ < bytes_) continue;
      offset_ = 0;
      data_ += stride_;
      --left_;
    }
  }

 private:
  static constexpr std::int64_t kLine = 64;
  const char* data_;
  std::int64_t stride_;  ///< In bytes, like the next two.
  std::int64_t bytes_;   ///< Of a row.
  std::int64_t offset_ = 0;
  std::int64_t count_;  ///< Rows,
  std::int64_t left_;   ///< and how many have not been asked for in steps.
  std::int64_t lines_of_step_ = 0;
};

/// Rows that are worked on side by side, so that what is loaded, and converted, of a key serves all
/// of them, and the keys or vectors of columns beside them: as many sums as the registers hold.
template <class S>
inline constexpr int kRowsAtOnce = S::kLanes == 16 ? 4 : 2;
inline constexpr int kBesideRows = 4;

/// sum[row][key] = the products of q[row] and key[key], not yet added up over the lanes, for
/// kRowsAtOnce rows and kLanes keys.
template <class S, class T>
TESSERA_INLINE void multiply_rows(const T* const (&key)[S::kLanes], const float* q,
                                  std::int64_t q_stride, std::int64_t head_dim, ComingRows& coming,
                                  typename S::V (&sum)[kRowsAtOnce<S>][S::kLanes]) {
  using V = typename S::V;
  constexpr int kRows = kRowsAtOnce<S>;
  const std::int64_t whole = head_dim / S::kLanes * S::kLanes;
  for (int first = 0; first < S::kLanes; first += kBesideRows) {
    V part[kRows][kBesideRows];
    TESSERA_UNROLL for (int i = 0; i < kRows; ++i) {
      TESSERA_UNROLL for (int r = 0; r < kBesideRows; ++r) part[i][r] = S::zero();
    }
    const auto add = [&](std::int64_t d, const auto& load) {
      V x[kRows];
      TESSERA_UNROLL for (int i = 0; i < kRows; ++i) x[i] = S::load(q + i * q_stride + d);
      TESSERA_UNROLL for (int r = 0; r < kBesideRows; ++r) {
        const V y = load(key[first + r] + d);
        TESSERA_UNROLL for (int i = 0; i < kRows; ++i) part[i][r] = S::fma(x[i], y, part[i][r]);
      }
    };
    for (std::int64_t d = 0; d < whole; d += S::kLanes) {
      add(d, [](const T* at) { return S::load_as_f32(at); });
      coming.step();
    }
    if (whole < head_dim) {
      add(whole, [&](const T* at) { return load_partial<S>(at, head_dim - whole); });
    }
    TESSERA_UNROLL for (int i = 0; i < kRows; ++i) {
      TESSERA_UNROLL for (int r = 0; r < kBesideRows; ++r) sum[i][first + r] = part[i][r];
    }
  }
}

/// The sums over the lanes of kLanes vectors, one in each lane.
template <class S>
TESSERA_INLINE typename S::V add_lanes(typename S::V (&sum)[S::kLanes]) {
  S::transpose(sum);
  typename S::V total = sum[0];
  TESSERA_UNROLL for (int r = 1; r < S::kLanes; ++r) total = S::add(total, sum[r]);
  return total;
}

/// s[key][row] = q[row] · k[key] for n keys; the lanes of other rows are zero.
template <class S, class T>
void dot_keys(const T* k, std::int64_t k_stride, std::int64_t n, const float* q,
              std::int64_t q_stride, std::int64_t rows, std::int64_t head_dim, ComingRows& coming,
              float* s) {
  using V = typename S::V;
  const std::int64_t whole = head_dim / S::kLanes * S::kLanes;
  const std::int64_t together = rows / kRowsAtOnce<S>;
  coming.spread((n + S::kLanes - 1) / S::kLanes * together * (S::kLanes / kBesideRows) *
                (whole / S::kLanes));
  for (std::int64_t j = 0; j < n; j += S::kLanes) {
    const T* key[S::kLanes];
    for (int r = 0; r < S::kLanes; ++r) key[r] = k + (j + r < n ? j + r : n - 1) * k_stride;
    if (together == 0) {
      for (int r = 0; r < S::kLanes; ++r) coming.prefetch(j + r < n ? j + r : n - 1);
    }
    V scores[S::kLanes];
    for (int row = 0; row < S::kLanes; ++row) scores[row] = S::zero();
    std::int64_t row = 0;
    for (; row + kRowsAtOnce<S> <= rows; row += kRowsAtOnce<S>) {
      V sums[kRowsAtOnce<S>][S::kLanes];
      multiply_rows<S>(key, q + row * q_stride, q_stride, head_dim, coming, sums);
      for (int i = 0; i < kRowsAtOnce<S>; ++i) scores[row + i] = add_lanes<S>(sums[i]);
    }
    for (; row < rows; ++row) {
      const float* q_row = q + row * q_stride;
      V sum[S::kLanes];
      TESSERA_UNROLL for (int r = 0; r < S::kLanes; ++r) sum[r] = S::zero();
      for (std::int64_t d = 0; d < whole; d += S::kLanes) {
        const V x = S::load(q_row + d);
        TESSERA_UNROLL for (int r = 0; r < S::kLanes; ++r) {
          sum[r] = S::fma(x, S::load_as_f32(key[r] + d), sum[r]);
        }
      }
      if (whole < head_dim) {
        const V x = S::load(q_row + whole);
        for (int r = 0; r < S::kLanes; ++r) {
          sum[r] = S::fma(x, load_partial<S>(key[r] + whole, head_dim - whole), sum[r]);
        }
      }
      scores[row] = add_lanes<S>(sum);
    }
    S::transpose(scores);
    for (int r = 0; r < S::kLanes; ++r) S::store(s + (j + r) * S::kLanes, scores[r]);
  }
}

/// o[d …] = α · o + Σ_j p[j] · v[j][d …] for N vectors of columns; p is one lane of [key][lanes].
template <class S, int N, class T>
TESSERA_INLINE void add_columns(const T* v, std::int64_t v_stride, const float* p, std::int64_t n,
                                float alpha, std::int64_t count, const ComingRows* coming,
                                float* o) {
  using V = typename S::V;
  V sum[N];
  TESSERA_UNROLL for (int c = 0; c < N; ++c) {
    sum[c] = S::mul(S::set(alpha), S::load(o + c * S::kLanes));
  }
  for (std::int64_t j = 0; j < n; ++j) {
    const V weight = S::set(p[j * S::kLanes]);
    if (coming != nullptr) coming->prefetch(j);
    TESSERA_UNROLL for (int c = 0; c < N; ++c) {
      const T* at = v + j * v_stride + c * S::kLanes;
      sum[c] = S::fma(weight, N == 1 ? load_up_to<S>(at, count) : S::load_as_f32(at), sum[c]);
    }
  }
  TESSERA_UNROLL for (int c = 0; c < N; ++c) S::store(o + c * S::kLanes, sum[c]);
}

/// The same for kRowsAtOnce rows, p[j][row], and kBesideRows vectors of columns.
template <class S, class T>
TESSERA_INLINE void add_columns_of_rows(const T* v, std::int64_t v_stride, const float* p,
                                        std::int64_t n, const float* alpha, ComingRows& coming,
                                        float* o, std::int64_t o_stride) {
  using V = typename S::V;
  constexpr int kRows = kRowsAtOnce<S>;
  V sum[kRows][kBesideRows];
  TESSERA_UNROLL for (int i = 0; i < kRows; ++i) {
    TESSERA_UNROLL for (int c = 0; c < kBesideRows; ++c) {
      sum[i][c] = S::mul(S::set(alpha[i]), S::load(o + i * o_stride + c * S::kLanes));
    }
  }
  for (std::int64_t j = 0; j < n; ++j) {
    coming.step();
    V x[kBesideRows];
    TESSERA_UNROLL for (int c = 0; c < kBesideRows; ++c) {
      x[c] = S::load_as_f32(v + j * v_stride + c * S::kLanes);
    }
    TESSERA_UNROLL for (int i = 0; i < kRows; ++i) {
      const V weight = S::set(p[j * S::kLanes + i]);
      TESSERA_UNROLL for (int c = 0; c < kBesideRows; ++c) {
        sum[i][c] = S::fma(weight, x[c], sum[i][c]);
      }
    }
  }
  TESSERA_UNROLL for (int i = 0; i < kRows; ++i) {
    TESSERA_UNROLL for (int c = 0; c < kBesideRows; ++c) {
      S::store(o + i * o_stride + c * S::kLanes, sum[i][c]);
    }
  }
}

/// o[row][d] = α[row] · o[row][d] + Σ_j p[j][row] · v[j][d].
template <class S, class T>
void add_values(const T* v, std::int64_t v_stride, const float* p, std::int64_t n,
                const float* alpha, std::int64_t rows, std::int64_t head_dim_v, ComingRows& coming,
                const PartialRows& part) {
  constexpr std::int64_t kColumns = kBesideRows * S::kLanes;
  const bool whole_columns = head_dim_v % kColumns == 0;
  const std::int64_t together = whole_columns ? rows / kRowsAtOnce<S> : 0;
  coming.spread(n * together * (head_dim_v / kColumns));
  std::int64_t row = 0;
  for (; whole_columns && row + kRowsAtOnce<S> <= rows; row += kRowsAtOnce<S>) {
    for (std::int64_t d = 0; d < head_dim_v; d += kColumns) {
      add_columns_of_rows<S>(v + d, v_stride, p + row, n, alpha + row, coming,
                             part.o + row * part.padded_v + d, part.padded_v);
    }
  }
  for (; row < rows; ++row) {
    float* o = part.o + row * part.padded_v;
    std::int64_t d = 0;
    const auto first = [&] { return row == 0 && d == 0 ? &coming : nullptr; };
    for (; d + 8 * S::kLanes <= head_dim_v; d += 8 * S::kLanes) {
      add_columns<S, 8>(v + d, v_stride, p + row, n, alpha[row], 0, first(), o + d);
    }
    for (; d + 4 * S::kLanes <= head_dim_v; d += 4 * S::kLanes) {
      add_columns<S, 4>(v + d, v_stride, p + row, n, alpha[row], 0, first(), o + d);
    }
    for (; d < head_dim_v; d += S::kLanes) {
      add_columns<S, 1>(v + d, v_stride, p + row, n, alpha[row], head_dim_v - d, first(), o + d);
    }
  }
}

/// Nothing seen yet.
template <class S>
void clear_partial_rows(const Blocking& blocking, std::int64_t rows, float* base) {
  const PartialRows part = PartialRows::carve<S>(blocking, rows, base);
  S::store(part.m, S::set(kMinusInfinity));
  S::store(part.l, S::zero());
  for (std::int64_t i = 0; i < rows * part.padded_v; i += S::kLanes) {
    S::store(part.o + i, S::zero());
  }
}

/// Adds the keys of the tile's walk to a partial result of its rows, at most one vector of them.
template <class S>
void few_rows_tile(const ForwardTile& tile, float* partial, float* base) {
  const Blocking& b = tile.blocking;
  const PartialRows part = PartialRows::carve<S>(b, tile.rows, partial);
  const FewRowsScratch scratch = FewRowsScratch::carve<S>(b, base);
  const Panel panel = make_panel<S>(tile, VectorGroups<S>(1), 0);
  load_rows<S>(tile.q, tile.rows, b.head_dim, scratch.q, scratch.padded);
  const typename S::V scale = S::set(tile.rules.q_scale);
  for (std::int64_t i = 0; i < tile.rows * scratch.padded; i += S::kLanes) {
    S::store(scratch.q + i, S::mul(scale, S::load(scratch.q + i)));
  }
  float alpha[S::kLanes];
  KeyWalk walk = tile.keys;
  KeySegment segment;
  while (next_segment(walk, segment)) {
    for (std::int64_t begin = segment.begin; begin < segment.end; begin += b.block_kv) {
      const std::int64_t end = begin + b.block_kv < segment.end ? begin + b.block_kv : segment.end;
      const std::int64_t n = end - begin;
      ComingRows values(tile.v, begin, n, b.head_dim_v);
      ComingRows keys(tile.k, end, n, b.head_dim);
      with_pointer(tile.k, [&](const auto* k) {
        dot_keys<S>(k + begin * tile.k.stride, tile.k.stride, n, scratch.q, scratch.padded,
                    tile.rows, b.head_dim, values, scratch.s);
      });
      const ScoreContext context = {&tile.rules, tile.key_begin, tile.key_end, panel, begin,
                                    n,           scratch.bias,   nullptr};
      finish_scores<S, 1>(context, segment, scratch.s);
      softmax_step<S, 1>(scratch.s, n, part.m, part.l, alpha);
      if (tile.rules.dropout) apply_dropout<S, 1>(context, scratch.s);
      with_pointer(tile.v, [&](const auto* v) {
        add_values<S>(v + begin * tile.v.stride, tile.v.stride, scratch.s, n, alpha, tile.rows,
                      b.head_dim_v, keys, part);
      });
    }
  }
}

/// Merges `count` partial results, `stride` floats apart, into the first and stores O and LSE.
template <class S>
void merge_few_rows(const ForwardTile& tile, float* partials, std::int64_t stride,
                    std::int64_t count) {
  const Blocking& b = tile.blocking;
  const PartialRows first = PartialRows::carve<S>(b, tile.rows, partials);
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    float highest = kMinusInfinity;
    for (std::int64_t i = 0; i < count; ++i) {
      const float m = first.m[i * stride + row];
      if (m > highest) highest = m;
    }
    double sum = 0;
    float* o = first.o + row * first.padded_v;
    for (std::int64_t i = 0; i < count; ++i) {
      const PartialRows part = PartialRows::carve<S>(b, tile.rows, partials + i * stride);
      const float m = part.m[row];
      const float weight =
          m == kMinusInfinity ? 0.0f : static_cast<float>(__builtin_exp2(double{m} - highest));
      sum += double{weight} * part.l[row];
      const typename S::V w = S::set(weight);
      const float* from = part.o + row * part.padded_v;
      for (std::int64_t d = 0; d < part.padded_v; d += S::kLanes) {
        const typename S::V scaled = S::mul(w, S::load(from + d));
        S::store(o + d, i == 0 ? scaled : S::add(S::load(o + d), scaled));
      }
    }
    const float factor = output_factor(tile, row, sum, highest);
    for (std::int64_t d = 0; d < first.padded_v; d += S::kLanes) {
      S::store(o + d, S::mul(S::set(factor), S::load(o + d)));
    }
  }
  store_rows<S>(first.o, first.padded_v, tile.rows, b.head_dim_v, tile.o);
}

}  // namespace tessera::cpu
