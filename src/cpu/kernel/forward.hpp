// Forward: one tile of query rows of one head against all keys it may see (FlashAttention-2's loop
// order, Dao 2023, Algorithm 1).
//
//   for each block of keys                                   K, V stay in the L2 cache
//     for each panel of ≤ 3 vectors of queries               S and P stay in the L1 cache
//       S[key][query]  = K · Qᵀ                              register tiles of 8 keys × 3 vectors
//       m, P = exp2(S − m), l                                lane by lane: no horizontal operation
//       O[d][query]    = O · α + Vᵀ · P                      register tiles of 8 columns × 3
//       vectors
//   O / l, transposed back into the caller's rows
//
// Where all the keys of a tile are one block, O is made in the caller's rows at once, [query][d]
// from register tiles of 8 queries × 3 vectors of V: no O in scratch, and no way back from it.
//
// Q is transposed into panels once per tile; K and V are read where they lie (f32) or converted a
// block at a time into scratch. Rows without a visible key keep m = −inf and l = 0 and give 0.
#pragma once

#include "cpu/kernel/scores.hpp"
#include "cpu/kernel/scratch.hpp"

namespace tessera::cpu {

struct ForwardScratch {
  float* q_t;    ///< Per panel [head_dim][lanes].
  float* o_t;    ///< Per panel [head_dim_v][lanes].
  float* m;      ///< [tile_q] running maximum, base 2.
  float* l;      ///< [tile_q] running sum.
  float* alpha;  ///< [one panel] what the last step multiplies O and l by.
  float* s;      ///< [block_kv][one panel] scores, then P.
  float* bias;   ///< [block_kv][one panel]
  float* k;      ///< [block_kv][head_dim] converted keys.
  float* v;
  std::int64_t floats;

  template <class S>
  static ForwardScratch carve(const Blocking& b, float* base) {
    constexpr std::int64_t kPanel = S::kTileVectors * S::kLanes;
    Carver carver(base);
    ForwardScratch x;
    x.q_t = carver.floats(b.tile_q * b.head_dim);
    x.o_t = carver.floats(b.tile_q * b.head_dim_v);
    x.m = carver.floats(b.tile_q);
    x.l = carver.floats(b.tile_q);
    x.alpha = carver.floats(kPanel);
    x.s = carver.floats(b.block_kv * kPanel);
    x.bias = carver.floats(b.block_kv * kPanel);
    x.k = carver.floats(b.block_kv * whole_vectors<S>(b.head_dim));
    x.v = carver.floats(b.block_kv * whole_vectors<S>(b.head_dim_v));
    x.floats = carver.used();
    return x;
  }
};

/// One online-softmax step over n keys: s becomes P, m and l are updated, alpha is what earlier
/// results must be multiplied by.
template <class S, int C>
void softmax_step(float* s, std::int64_t n, float* m, float* l, float* alpha) {
  using V = typename S::V;
  constexpr std::int64_t kLanes = C * S::kLanes;
  const V largest = S::set(kLargest);
  V highest[C], base[C], sum[C];
  TESSERA_UNROLL for (int c = 0; c < C; ++c) highest[c] = S::load(m + c * S::kLanes);
  for (std::int64_t j = 0; j < n; ++j) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      highest[c] = S::max(highest[c], S::load(s + j * kLanes + c * S::kLanes));
    }
  }
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    // Scores that overflowed f32 saturate; a row that has seen nothing keeps −inf and subtracts 0.
    const V m_new = S::min(largest, highest[c]);
    const V minus_infinity = S::set(kMinusInfinity);
    base[c] = S::select(S::equal(m_new, minus_infinity), S::zero(), m_new);
    const V a = exp2<S>(S::sub(S::load(m + c * S::kLanes), base[c]));
    S::store(alpha + c * S::kLanes, a);
    S::store(m + c * S::kLanes, m_new);
    sum[c] = S::mul(a, S::load(l + c * S::kLanes));
  }
  for (std::int64_t j = 0; j < n; ++j) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      float* at = s + j * kLanes + c * S::kLanes;
      const V p = exp2<S>(S::sub(S::min(largest, S::load(at)), base[c]));
      S::store(at, p);
      sum[c] = S::add(sum[c], p);
    }
  }
  TESSERA_UNROLL for (int c = 0; c < C; ++c) S::store(l + c * S::kLanes, sum[c]);
}

/// o_t[d][lane] = α[lane] · o_t[d][lane] + Σ_j v[j][d] · p[j][lane].
template <class S, int C>
void accumulate_output(const float* v, std::int64_t v_stride, const float* p, std::int64_t n,
                       std::int64_t head_dim_v, const float* alpha, float* o_t) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  for_row_tiles<S>(head_dim_v, [&]<int R>(std::int64_t d) {
    Accumulator<S, R, C> acc;
    acc.load(o_t + d * kLanes, kLanes);
    ask_for(o_t + (d + R) * kLanes, R * kLanes);
    acc.scale(alpha);
    acc.template multiply_add<BroadcastFrom::rows_contiguous>(v + d, v_stride, p, kLanes, n);
    acc.store(o_t + d * kLanes, kLanes);
  });
}

/// What a row's unnormalised output is to be multiplied by, given the sum of its weights relative
/// to 2 to the `highest`; stores its LSE.
TESSERA_INLINE float output_factor(const ForwardTile& tile, std::int64_t row, double sum,
                                   double highest) {
  float scale = 1;
  if (tile.has_sink) {
    // The sink joins the denominator; a row may have nothing else.
    if (sum == 0 || tile.sink > highest) {
      scale = sum == 0 ? 0.0f : static_cast<float>(__builtin_exp2(highest - tile.sink));
      sum = sum * scale + 1;
      highest = tile.sink;
    } else {
      sum += __builtin_exp2(tile.sink - highest);
    }
  }
  if (tile.lse != nullptr) {
    const double lse = sum == 0 ? static_cast<double>(kMinusInfinity)
                                : (highest + __builtin_log2(sum)) * 0.693147180559945309417;
    tile.lse[row * tile.lse_stride] = static_cast<float>(lse);
  }
  return sum == 0 ? 0.0f : static_cast<float>(scale / sum);
}

/// The same for n rows without a sink, all at once; a sum that is no number stays none.
template <class S>
void output_factors(const ForwardTile& tile, std::int64_t row, std::int64_t n, const float* m,
                    const float* l, float* factor) {
  for (std::int64_t i = 0; i < n; ++i) factor[i] = l[i] == 0 ? 0.0f : 1.0f / l[i];
  if (tile.lse == nullptr) return;
  float lse[S::kTileVectors * S::kLanes];
  for (std::int64_t i = 0; i < n; ++i) {
    const double sum = l[i] == 0 ? 1.0 : static_cast<double>(l[i]);
    const float value =
        static_cast<float>((static_cast<double>(m[i]) + log2_of(sum)) * 0.693147180559945309417);
    lse[i] = (l[i] == 0 ? kMinusInfinity : value) + (l[i] - l[i]);
  }
  for (std::int64_t i = 0; i < n; ++i) tile.lse[(row + i) * tile.lse_stride] = lse[i];
}

/// What the rows of a panel are to be multiplied by in the end; stores their LSE.
template <class S>
void finish_rows(const ForwardTile& tile, const Panel& panel, const float* m, const float* l,
                 float* factor) {
  if (tile.has_sink) {
    for (std::int64_t i = 0; i < panel.rows; ++i) {
      factor[i] = output_factor(tile, panel.lane0 + i, l[i], m[i]);
    }
  } else {
    output_factors<S>(tile, panel.lane0, panel.rows, m, l, factor);
  }
}

/// The caller's rows of a panel's output.
TESSERA_INLINE OutputRows output_of(const ForwardTile& tile, const Panel& panel) {
  OutputRows out = tile.o;
  with_pointer(tile.o, [&](auto* data) { out.data = data + panel.lane0 * tile.o.stride; });
  return out;
}

/// Divides by l, stores O and the LSE of one panel.
template <class S>
void finish_panel(const ForwardTile& tile, const Panel& panel, const float* o_t, const float* m,
                  const float* l) {
  float factor[S::kTileVectors * S::kLanes] = {};
  finish_rows<S>(tile, panel, m, l, factor);
  store_transposed<S>(o_t, panel.lanes, factor, panel.rows, tile.blocking.head_dim_v,
                      output_of(tile, panel));
}

/// out[row][d] = factor[row] · Σ_j p[j][row] · v[j][d] of a panel; `columns` are whole vectors.
template <class S>
void store_output(const KeyRows& v, std::int64_t columns, const float* p, std::int64_t lanes,
                  std::int64_t n, const float* factor, std::int64_t rows, const OutputRows& out) {
  const VectorGroups<S> groups(columns / S::kLanes);
  with_pointer(out, [&](auto* data) {
    for (std::int64_t g = 0; g < groups.count; ++g) {
      const std::int64_t d = groups.first(g) * S::kLanes;
      with_vectors<S>(groups.width(g), [&]<int C>() {
        for_row_tiles<S>(rows, [&]<int R>(std::int64_t row) {
          Accumulator<S, R, C> acc;
          acc.clear();
          acc.template multiply_add<BroadcastFrom::rows_contiguous>(p + row, lanes, v.data + d,
                                                                    v.stride, n);
          TESSERA_UNROLL for (int r = 0; r < R; ++r) {
            const typename S::V f = S::set(factor[row + r]);
            auto* to = data + (row + r) * out.stride + d;
            TESSERA_UNROLL for (int c = 0; c < C; ++c) {
              S::store_from_f32(to + c * S::kLanes, S::mul(f, acc.at[r][c]));
            }
          }
        });
      });
    }
  });
}

/// Q of a tile by panels, the running numbers at their start.
template <class S>
void begin_tile(const ForwardTile& tile, const ForwardScratch& scratch, const Panels<S>& panels) {
  const std::int64_t head_dim = tile.blocking.head_dim;
  for (const Panel& panel : panels) {
    Rows q = tile.q;
    with_pointer(tile.q, [&](const auto* data) { q.data = data + panel.lane0 * q.stride; });
    load_transposed<S>(q, panel.rows, 0, head_dim, tile.rules.q_scale,
                       scratch.q_t + panel.lane0 * head_dim, panel.lanes, panel.vectors);
    for (std::int64_t i = 0; i < panel.lanes; i += S::kLanes) {
      S::store(scratch.m + panel.lane0 + i, S::set(kMinusInfinity));
      S::store(scratch.l + panel.lane0 + i, S::zero());
    }
  }
}

/// Weights of one panel for the keys [begin, end) of a block, of which it sees `n` from j0 on.
template <class S, int C>
void weigh_keys(const ForwardTile& tile, const ForwardScratch& scratch, const Panel& panel,
                const KeySegment& segment, const float* k, std::int64_t k_stride, std::int64_t j0,
                std::int64_t n) {
  float* s = scratch.s;
  const std::int64_t head_dim = tile.blocking.head_dim;
  multiply_rows<S, C>(k, k_stride, scratch.q_t + panel.lane0 * head_dim, head_dim, n, s);
  const ScoreContext context = {&tile.rules,
                                tile.key_begin + panel.lane0,
                                tile.key_end + panel.lane0,
                                panel,
                                j0,
                                n,
                                scratch.bias,
                                nullptr};
  finish_scores<S, C>(context, segment, s);
  softmax_step<S, C>(s, n, scratch.m + panel.lane0, scratch.l + panel.lane0, scratch.alpha);
  if (tile.rules.dropout) apply_dropout<S, C>(context, s);
}

/// Whether a tile's keys are one block: those of `segment`.
TESSERA_INLINE bool is_one_block(const ForwardTile& tile, KeySegment& segment) {
  KeyWalk walk = tile.keys;
  KeySegment another;
  return next_segment(walk, segment) && segment.end - segment.begin <= tile.blocking.block_kv &&
         !next_segment(walk, another);
}

/// A tile whose keys are one block.
template <class S>
void forward_one_block(const ForwardTile& tile, const ForwardScratch& scratch,
                       const Panels<S>& panels, const KeySegment& segment) {
  const std::int64_t head_dim_v = tile.blocking.head_dim_v;
  const KeyRows k =
      key_rows<S>(tile.k, segment.begin, segment.end, tile.blocking.head_dim, scratch.k);
  const KeyRows v = key_rows<S>(tile.v, segment.begin, segment.end, head_dim_v, scratch.v);
  for (const Panel& panel : panels) {
    const std::int64_t j0 = segment.begin > panel.begin ? segment.begin : panel.begin;
    const std::int64_t end = segment.end < panel.end ? segment.end : panel.end;
    const std::int64_t n = end > j0 ? end - j0 : 0;
    const std::int64_t skipped = n > 0 ? j0 - segment.begin : 0;
    if (n > 0) {
      with_vectors<S>(panel.vectors, [&]<int C>() {
        weigh_keys<S, C>(tile, scratch, panel, segment, k.data + skipped * k.stride, k.stride, j0,
                         n);
      });
    }
    float factor[S::kTileVectors * S::kLanes] = {};
    finish_rows<S>(tile, panel, scratch.m + panel.lane0, scratch.l + panel.lane0, factor);
    store_output<S>({v.data + skipped * v.stride, v.stride}, head_dim_v, scratch.s, panel.lanes, n,
                    factor, panel.rows, output_of(tile, panel));
  }
}

template <class S>
void forward_tile(const ForwardTile& tile, float* base) {
  const std::int64_t head_dim = tile.blocking.head_dim;
  const std::int64_t head_dim_v = tile.blocking.head_dim_v;
  const ForwardScratch scratch = ForwardScratch::carve<S>(tile.blocking, base);
  const Panels<S> panels(tile);
  begin_tile<S>(tile, scratch, panels);

  KeySegment segment;
  if (head_dim_v % S::kLanes == 0 && is_one_block(tile, segment)) {
    return forward_one_block<S>(tile, scratch, panels, segment);
  }
  for (const Panel& panel : panels) {
    for (std::int64_t i = 0; i < panel.lanes * head_dim_v; i += S::kLanes) {
      S::store(scratch.o_t + panel.lane0 * head_dim_v + i, S::zero());
    }
  }
  KeyWalk walk = tile.keys;
  while (next_segment(walk, segment)) {
    for (std::int64_t begin = segment.begin; begin < segment.end; begin += tile.blocking.block_kv) {
      const std::int64_t end = begin + tile.blocking.block_kv < segment.end
                                   ? begin + tile.blocking.block_kv
                                   : segment.end;
      const KeyRows k = key_rows<S>(tile.k, begin, end, head_dim, scratch.k);
      const KeyRows v = key_rows<S>(tile.v, begin, end, head_dim_v, scratch.v);
      for (const Panel& panel : panels) {
        const std::int64_t j0 = begin > panel.begin ? begin : panel.begin;
        const std::int64_t n = (end < panel.end ? end : panel.end) - j0;
        if (n <= 0) continue;
        with_vectors<S>(panel.vectors, [&]<int C>() {
          weigh_keys<S, C>(tile, scratch, panel, segment, k.data + (j0 - begin) * k.stride,
                           k.stride, j0, n);
          accumulate_output<S, C>(v.data + (j0 - begin) * v.stride, v.stride, scratch.s, n,
                                  head_dim_v, scratch.alpha,
                                  scratch.o_t + panel.lane0 * head_dim_v);
        });
      }
    }
  }

  for (const Panel& panel : panels) {
    finish_panel<S>(tile, panel, scratch.o_t + panel.lane0 * head_dim_v, scratch.m + panel.lane0,
                    scratch.l + panel.lane0);
  }
}

}  // namespace tessera::cpu
