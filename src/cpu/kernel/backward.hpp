// Backward: one tile of query rows of one head against all keys it may see (FlashAttention-2,
// Algorithm 2, with the loops exchanged: queries outside, keys inside).
//
//   for each block of keys
//     for each panel of queries
//       S  = K · Qᵀ, P = exp2(S − lse)                       [key][query]
//       dP = V · dOᵀ, dS = P ∘ (Z ∘ dP − δ + dLSE)           [key][query]
//       dQᵀ += Kᵀ · dS                                       [d][query]
//     dV += (Z ∘ P) · dO, dK += dS · Q                       [key][d], over all panels at once
//
// dQ of the tile accumulates in scratch and is written when the loop ends; dK and dV accumulate in
// f32 memory that is the calling task's alone while it runs, so no two threads ever add to the same
// place and the result does not depend on timing. Five products, no atomics.
#pragma once

#include "cpu/kernel/scores.hpp"
#include "cpu/kernel/scratch.hpp"

namespace tessera::cpu {

struct BackwardScratch {
  float* q_t;            ///< Per panel [head_dim][lanes], times q_scale.
  float* d_o_t;          ///< Per panel [head_dim_v][lanes].
  float* d_q_t;          ///< Per panel [head_dim][lanes].
  float* q;              ///< Per group of columns [tile_q][its vectors]: see load_column_panels.
  float* d_o;            ///< Likewise, head_dim_v columns.
  float* lse;            ///< [tile_q] base 2, finite.
  float* offset;         ///< [tile_q] δ − dLSE.
  float* p;              ///< Per panel [block_kv][lanes].
  float* d_s;            ///< Per panel [block_kv][lanes].
  float* bias;           ///< [block_kv][one panel]
  float* softcap_slope;  ///< [block_kv][one panel]
  float* k;
  float* v;
  std::int64_t floats;

  template <class S>
  static BackwardScratch carve(const Blocking& b, float* base) {
    constexpr std::int64_t kPanel = S::kTileVectors * S::kLanes;
    const std::int64_t padded = whole_vectors<S>(b.head_dim);
    const std::int64_t padded_v = whole_vectors<S>(b.head_dim_v);
    Carver carver(base);
    BackwardScratch x;
    x.q_t = carver.floats(b.tile_q * b.head_dim);
    x.d_o_t = carver.floats(b.tile_q * b.head_dim_v);
    x.d_q_t = carver.floats(b.tile_q * b.head_dim);
    x.q = carver.floats(b.tile_q * padded);
    x.d_o = carver.floats(b.tile_q * padded_v);
    x.lse = carver.floats(b.tile_q);
    x.offset = carver.floats(b.tile_q);
    x.p = carver.floats(b.tile_q * b.block_kv);
    x.d_s = carver.floats(b.tile_q * b.block_kv);
    x.bias = carver.floats(b.block_kv * kPanel);
    x.softcap_slope = carver.floats(b.block_kv * kPanel);
    x.k = carver.floats(b.block_kv * padded);
    x.v = carver.floats(b.block_kv * padded_v);
    x.floats = carver.used();
    return x;
  }
};

/// Keys of the current block that a panel holds P and dS for, relative to the block's first.
struct PanelKeys {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

template <class S>
struct BackwardState {
  const BackwardTile& tile;
  BackwardScratch scratch;
  Panels<S> panels;
  std::int64_t head_dim, head_dim_v;
  PanelKeys keys[kMaxPanels];

  BackwardState(const BackwardTile& t, float* base)
      : tile(t),
        scratch(BackwardScratch::carve<S>(t.blocking, base)),
        panels(t),
        head_dim(t.blocking.head_dim),
        head_dim_v(t.blocking.head_dim_v) {}
};

/// What row i needs besides Q and dO, from the lanes whose sum is its δ.
template <class S>
void set_row_numbers(const BackwardTile& t, std::int64_t i, typename S::V delta_lanes,
                     float* row_lse, float* offset) {
  float lanes[S::kLanes];
  S::store(lanes, delta_lanes);
  float delta = 0;
  for (float lane : lanes) delta += lane;
  const float lse = t.lse[i * t.lse_stride];
  const float d_lse = t.d_lse != nullptr ? t.d_lse[i * t.d_lse_stride] : 0.0f;
  offset[i] = delta - d_lse;
  // A fully masked row has lse = −inf and only scores of −inf: any finite value gives P = 0.
  row_lse[i] = lse == kMinusInfinity ? 0.0f : lse * kLog2E;
  if (t.d_sink != nullptr && lse != kMinusInfinity) {
    const float p_sink = static_cast<float>(__builtin_exp(double{t.sink} - double{lse}));
    *t.d_sink += p_sink * (d_lse - delta);
  }
}

/// Zeros for the lanes behind the last row.
template <class S>
void pad_row_numbers(std::int64_t rows, float* row_lse, float* offset) {
  for (std::int64_t i = rows; i < whole_vectors<S>(rows); ++i) {
    offset[i] = 0;
    row_lse[i] = 0;
  }
}

/// δ = Σ_d dO ∘ O for `rows` rows (Dao 2023, eq. for D).
template <class S>
void row_offsets(const BackwardState<S>& x) {
  const BackwardTile& t = x.tile;
  with_pointer(t.d_o, [&](const auto* d_o) {
    with_pointer(t.o, [&](const auto* o) {
      for (std::int64_t i = 0; i < t.rows; ++i) {
        typename S::V sum = S::zero();
        for (std::int64_t d = 0; d < x.head_dim_v; d += S::kLanes) {
          sum = S::fma(load_up_to<S>(d_o + i * t.d_o.stride + d, x.head_dim_v - d),
                       load_up_to<S>(o + i * t.o.stride + d, x.head_dim_v - d), sum);
        }
        set_row_numbers<S>(t, i, sum, x.scratch.lse, x.scratch.offset);
      }
    });
  });
  pad_row_numbers<S>(t.rows, x.scratch.lse, x.scratch.offset);
}

/// The rows from row `first` on.
TESSERA_INLINE Rows rows_from(Rows rows, std::int64_t first) {
  with_pointer(rows, [&](const auto* data) { rows.data = data + first * rows.stride; });
  return rows;
}

/// Q and dO of the tile, in both orientations, and the per-row numbers.
template <class S>
void load_tile(const BackwardState<S>& x) {
  const BackwardTile& t = x.tile;
  load_column_panels<S>(t.q, t.rows, x.head_dim, x.scratch.q, t.blocking.tile_q);
  load_column_panels<S>(t.d_o, t.rows, x.head_dim_v, x.scratch.d_o, t.blocking.tile_q);
  for (const Panel& panel : x.panels) {
    const Rows q = rows_from(t.q, panel.lane0);
    const Rows d_o = rows_from(t.d_o, panel.lane0);
    load_transposed<S>(q, panel.rows, 0, x.head_dim, t.rules.q_scale,
                       x.scratch.q_t + panel.lane0 * x.head_dim, panel.lanes, panel.vectors);
    load_transposed<S>(d_o, panel.rows, 0, x.head_dim_v, 1.0f,
                       x.scratch.d_o_t + panel.lane0 * x.head_dim_v, panel.lanes, panel.vectors);
    float* d_q_t = x.scratch.d_q_t + panel.lane0 * x.head_dim;
    if (t.d_q_so_far.data != nullptr) {
      const Rows so_far = {
          static_cast<const float*>(t.d_q_so_far.data) + panel.lane0 * t.d_q_so_far.stride,
          t.d_q_so_far.stride, DType::f32};
      load_transposed<S>(so_far, panel.rows, 0, x.head_dim, 1.0f, d_q_t, panel.lanes,
                         panel.vectors);
    } else {
      for (std::int64_t i = 0; i < panel.lanes * x.head_dim; i += S::kLanes) {
        S::store(d_q_t + i, S::zero());
      }
    }
  }
  row_offsets(x);
}

/// P = exp2(S − lse) in place.
template <class S, int C>
void probabilities(float* s, std::int64_t n, const float* lse) {
  using V = typename S::V;
  const V largest = S::set(kLargest);
  V base[C];
  TESSERA_UNROLL for (int c = 0; c < C; ++c) base[c] = S::load(lse + c * S::kLanes);
  for (std::int64_t j = 0; j < n; ++j) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      float* at = s + (j * C + c) * S::kLanes;
      S::store(at, exp2<S>(S::sub(S::min(largest, S::load(at)), base[c])));
    }
  }
}

/// dS = factor · P ∘ (dP − offset), in dP's place; with dropout, dP and P are Z-scaled on the way
/// (dS uses the undropped P, dV the dropped one).
template <class S, int C>
void score_gradients(const ScoreContext& context, float factor, float* p, float* d_p,
                     const float* offset, float* undropped) {
  using V = typename S::V;
  constexpr std::int64_t kLanes = C * S::kLanes;
  const bool dropout = context.rules->dropout;
  const float* p_of_d_s = p;
  if (dropout) {
    for (std::int64_t i = 0; i < context.n * kLanes; i += S::kLanes) {
      S::store(undropped + i, S::load(p + i));
    }
    p_of_d_s = undropped;
    apply_dropout<S, C>(context, p);
    apply_dropout<S, C>(context, d_p);
  }
  V base[C];
  TESSERA_UNROLL for (int c = 0; c < C; ++c) base[c] = S::load(offset + c * S::kLanes);
  const V f = S::set(factor);
  for (std::int64_t j = 0; j < context.n; ++j) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      const std::int64_t i = (j * C + c) * S::kLanes;
      const V centred = S::sub(S::load(d_p + i), base[c]);
      S::store(d_p + i, S::mul(S::mul(S::load(p_of_d_s + i), f), centred));
    }
  }
  if (context.softcap_slope != nullptr) {
    for (std::int64_t i = 0; i < context.n * kLanes; i += S::kLanes) {
      S::store(d_p + i, S::mul(S::load(d_p + i), S::load(context.softcap_slope + i)));
    }
  }
}

/// P and dS of one panel for keys [j0, j0 + n); dS times `factor`, through the softcap if `capped`.
template <class S, int C>
void panel_gradients(const BackwardState<S>& x, const Panel& panel, const KeySegment& segment,
                     const KeyRows& k, const KeyRows& v, std::int64_t j0, std::int64_t n,
                     float factor, bool capped, float* p, float* d_s) {
  const ScoreContext context = {
      &x.tile.rules,
      x.tile.key_begin + panel.lane0,
      x.tile.key_end + panel.lane0,
      panel,
      j0,
      n,
      x.scratch.bias,
      capped && x.tile.rules.softcap > 0 ? x.scratch.softcap_slope : nullptr};
  multiply_rows<S, C>(k.data, k.stride, x.scratch.q_t + panel.lane0 * x.head_dim, x.head_dim, n, p);
  finish_scores<S, C>(context, segment, p);
  probabilities<S, C>(p, n, x.scratch.lse + panel.lane0);
  multiply_rows<S, C>(v.data, v.stride, x.scratch.d_o_t + panel.lane0 * x.head_dim_v, x.head_dim_v,
                      n, d_s);
  score_gradients<S, C>(context, factor, p, d_s, x.scratch.offset + panel.lane0, x.scratch.bias);
}

/// d_q_t[d][lane] += Σ_j k[j][d] · d_s[j][lane].
template <class S, int C>
void accumulate_d_q(const KeyRows& k, const float* d_s, std::int64_t n, std::int64_t head_dim,
                    float* d_q_t) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  for_row_tiles<S>(head_dim, [&]<int R>(std::int64_t d) {
    Accumulator<S, R, C> acc;
    acc.load(d_q_t + d * kLanes, kLanes);
    ask_for(d_q_t + (d + R) * kLanes, R * kLanes);
    acc.template multiply_add<BroadcastFrom::rows_contiguous>(k.data + d, k.stride, d_s, kLanes, n);
    acc.store(d_q_t + d * kLanes, kLanes);
  });
}

/// out[j][d] += Σ_i a[j][i] · b[i][d] over the rows of every panel that has keys of this row tile.
/// `a` is per panel [block_kv][lanes]; b is column panels of tile_q rows.
template <class S>
void accumulate_keys(const BackwardState<S>& x, const float* a, const float* b,
                     std::int64_t columns, std::int64_t n, float* out, std::int64_t out_stride) {
  const VectorGroups<S> column_groups((columns + S::kLanes - 1) / S::kLanes);
  const std::int64_t block_kv = x.tile.blocking.block_kv;
  for (std::int64_t cg = 0; cg < column_groups.count; ++cg) {
    const std::int64_t column = column_groups.first(cg) * S::kLanes;
    with_vectors<S>(column_groups.width(cg), [&]<int C>() {
      constexpr std::int64_t kWidth = C * S::kLanes;
      const float* b_panel = b + column * x.tile.blocking.tile_q;
      for_row_tiles<S>(n, [&]<int R>(std::int64_t j) {
        Accumulator<S, R, C> acc;
        float* sums = out + j * out_stride + column;
        acc.load(sums, out_stride);
        TESSERA_UNROLL for (int r = R; r < 2 * R; ++r) ask_for(sums + r * out_stride, kWidth);
        for (std::int64_t g = 0; g < x.panels.count; ++g) {
          if (x.keys[g].begin >= j + R || x.keys[g].end <= j) continue;
          const Panel& panel = x.panels.at[g];
          acc.template multiply_add<BroadcastFrom::depth_contiguous>(
              a + panel.lane0 * block_kv + j * panel.lanes, panel.lanes,
              b_panel + panel.lane0 * kWidth, kWidth, panel.rows);
        }
        acc.store(sums, out_stride);
      });
    });
  }
}

/// Zeros the rows around a panel's keys that share a register tile with them.
template <class S>
void pad_to_row_tiles(float* p, std::int64_t lanes, PanelKeys keys, std::int64_t n) {
  const std::int64_t first = keys.begin / S::kTileRows * S::kTileRows;
  std::int64_t last = (keys.end + S::kTileRows - 1) / S::kTileRows * S::kTileRows;
  if (last > n) last = n;
  for (std::int64_t i = first * lanes; i < keys.begin * lanes; i += S::kLanes) {
    S::store(p + i, S::zero());
  }
  for (std::int64_t i = keys.end * lanes; i < last * lanes; i += S::kLanes) {
    S::store(p + i, S::zero());
  }
}

template <class S>
void backward_block(BackwardState<S>& x, const KeySegment& segment, std::int64_t begin,
                    std::int64_t end) {
  const BackwardTile& t = x.tile;
  const std::int64_t block_kv = t.blocking.block_kv;
  const KeyRows k = key_rows<S>(t.k, begin, end, x.head_dim, x.scratch.k);
  const KeyRows v = key_rows<S>(t.v, begin, end, x.head_dim_v, x.scratch.v);
  for (const Panel& panel : x.panels) {
    const std::int64_t j0 = begin > panel.begin ? begin : panel.begin;
    const std::int64_t n = (end < panel.end ? end : panel.end) - j0;
    PanelKeys& keys = x.keys[&panel - x.panels.at];
    keys = {};
    if (n <= 0) continue;
    keys = {j0 - begin, j0 - begin + n};
    float* p = x.scratch.p + panel.lane0 * block_kv;
    float* d_s = x.scratch.d_s + panel.lane0 * block_kv;
    const std::int64_t first = (j0 - begin) * panel.lanes;
    const KeyRows k_here = {k.data + (j0 - begin) * k.stride, k.stride};
    const KeyRows v_here = {v.data + (j0 - begin) * v.stride, v.stride};
    with_vectors<S>(panel.vectors, [&]<int C>() {
      panel_gradients<S, C>(x, panel, segment, k_here, v_here, j0, n, t.scale, /*capped=*/true,
                            p + first, d_s + first);
      if (t.d_q.data != nullptr) {
        accumulate_d_q<S, C>(k_here, d_s + first, n, x.head_dim,
                             x.scratch.d_q_t + panel.lane0 * x.head_dim);
      }
    });
    pad_to_row_tiles<S>(p, panel.lanes, keys, end - begin);
    pad_to_row_tiles<S>(d_s, panel.lanes, keys, end - begin);
  }
  if (t.d_v != nullptr) {
    accumulate_keys(x, x.scratch.p, x.scratch.d_o, x.head_dim_v, end - begin,
                    t.d_v + begin * t.d_v_stride, t.d_v_stride);
  }
  if (t.d_k != nullptr) {
    accumulate_keys(x, x.scratch.d_s, x.scratch.q, x.head_dim, end - begin,
                    t.d_k + begin * t.d_k_stride, t.d_k_stride);
  }
}

/// Stores one panel's [column][lane] array into rows of `out`, from the tile's first row on.
template <class S>
void store_panel(const Panel& panel, const float* in, std::int64_t columns, OutputRows out) {
  float ones[S::kTileVectors * S::kLanes];
  for (float& one : ones) one = 1;
  with_pointer(out, [&](auto* data) { out.data = data + panel.lane0 * out.stride; });
  store_transposed<S>(in, panel.lanes, ones, panel.rows, columns, out);
}

template <class S>
void store_d_q(const BackwardState<S>& x) {
  for (const Panel& panel : x.panels) {
    store_panel<S>(panel, x.scratch.d_q_t + panel.lane0 * x.head_dim, x.head_dim, x.tile.d_q);
  }
}

template <class S>
void backward_tile(const BackwardTile& tile, float* base) {
  BackwardState<S> x(tile, base);
  load_tile(x);
  KeyWalk walk = tile.keys;
  KeySegment segment;
  while (next_segment(walk, segment)) {
    const std::int64_t step = tile.blocking.block_kv;
    for (std::int64_t begin = segment.begin; begin < segment.end; begin += step) {
      backward_block(x, segment, begin, begin + step < segment.end ? begin + step : segment.end);
    }
  }
  if (tile.d_q.data != nullptr) store_d_q(x);
}

/// dS, unscaled and past the softcap, where the bias enters.
template <class S>
void bias_gradient_tile(const BiasGradientTile& tile, float* base) {
  BackwardState<S> x(tile, base);
  load_tile(x);
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    for (std::int64_t j = 0; j < tile.end - tile.begin; ++j) {
      tile.d_bias[i * tile.d_bias_stride + j] = 0;
    }
  }
  KeyWalk walk = tile.keys;
  KeySegment segment;
  while (next_segment(walk, segment)) {
    const std::int64_t begin = segment.begin > tile.begin ? segment.begin : tile.begin;
    const std::int64_t end = segment.end < tile.end ? segment.end : tile.end;
    if (begin >= end) continue;
    const KeyRows k = key_rows<S>(tile.k, begin, end, x.head_dim, x.scratch.k);
    const KeyRows v = key_rows<S>(tile.v, begin, end, x.head_dim_v, x.scratch.v);
    for (const Panel& panel : x.panels) {
      const std::int64_t j0 = begin > panel.begin ? begin : panel.begin;
      const std::int64_t n = (end < panel.end ? end : panel.end) - j0;
      if (n <= 0) continue;
      const KeyRows k_here = {k.data + (j0 - begin) * k.stride, k.stride};
      const KeyRows v_here = {v.data + (j0 - begin) * v.stride, v.stride};
      float* d_s = x.scratch.d_s;
      with_vectors<S>(panel.vectors, [&]<int C>() {
        panel_gradients<S, C>(x, panel, segment, k_here, v_here, j0, n, 1.0f, /*capped=*/false,
                              x.scratch.p, d_s);
      });
      store_panel<S>(panel, d_s, n,
                     {tile.d_bias + (j0 - tile.begin), tile.d_bias_stride, DType::f32});
    }
  }
}

}  // namespace tessera::cpu
