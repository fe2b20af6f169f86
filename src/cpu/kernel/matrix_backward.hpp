// Backward on matrix tiles: the schedule of backward.hpp, with its five products in bf16.
//
//   for each block of keys, in strips of 32
//     for each panel of queries
//       S  = K · Qᵀ, P = exp2(f S − lse)                     [key][query], f32 from tiles
//       dP = V · dOᵀ, dS = P ∘ (Z ∘ dP − δ + dLSE)           [key][query]
//       P and dS rounded to bf16: [key][query] of the whole tile, dS in pairs of keys too
//       dQᵀ += Kᵀ · dS                                       [d][query]
//     dV += (Z ∘ P) · dO, dK += dS · Q                       [key][d], depth: the tile's queries
//
// Operands of A lie in rows along the depth: K, V, Kᵀ packed per head, P and dS as they come. Those
// of B lie in pairs along it: Q and dO along the head dim and along the queries, dS along the keys.
#pragma once

#include "cpu/kernel/backward.hpp"
#include "cpu/kernel/matrix_forward.hpp"

namespace tessera::cpu {

struct MatrixBackwardScratch {
  bf16* q;               ///< Per panel [depth / 2][lanes][2].
  bf16* d_o;             ///< Per panel [depth_v / 2][lanes][2].
  bf16* q_rows;          ///< [rows / 2][depth][2]
  bf16* d_o_rows;        ///< [rows / 2][depth_v][2]
  float* d_q_t;          ///< Per panel [depth][lanes].
  float* lse;            ///< [tile_q] base 2, finite.
  float* offset;         ///< [tile_q] δ − dLSE.
  float* p;              ///< [block_kv][one panel]
  float* d_s;            ///< [block_kv][one panel]
  bf16* p_rows;          ///< [block_kv][rows]
  bf16* d_s_rows;        ///< [block_kv][rows]
  bf16* d_s_pairs;       ///< [block_kv / 2][one panel][2]
  float* bias;           ///< [block_kv][one panel]
  float* softcap_slope;  ///< [block_kv][one panel]
  std::int64_t rows;     ///< tile_q in whole strips.
  std::int64_t floats;

  template <class S>
  static MatrixBackwardScratch carve(const Blocking& b, float* base) {
    constexpr std::int64_t kPanel = S::kTileVectors * S::kLanes;
    const StripLayout layout(b);
    Carver carver(base);
    const auto halves = [&carver](std::int64_t count) {
      return reinterpret_cast<bf16*>(carver.floats(count / 2));
    };
    MatrixBackwardScratch x;
    x.rows = whole_strips(b.tile_q);
    x.q = halves(b.tile_q * layout.depth);
    x.d_o = halves(b.tile_q * layout.depth_v);
    x.q_rows = halves(x.rows * layout.depth);
    x.d_o_rows = halves(x.rows * layout.depth_v);
    x.d_q_t = carver.floats(b.tile_q * layout.depth);
    x.lse = carver.floats(b.tile_q);
    x.offset = carver.floats(b.tile_q);
    x.p = carver.floats(b.block_kv * kPanel);
    x.d_s = carver.floats(b.block_kv * kPanel);
    x.p_rows = halves(b.block_kv * x.rows);
    x.d_s_rows = halves(b.block_kv * x.rows);
    x.d_s_pairs = halves(b.block_kv * kPanel);
    x.bias = carver.floats(b.block_kv * kPanel);
    x.softcap_slope = carver.floats(b.block_kv * kPanel);
    x.floats = carver.used();
    return x;
  }
};

template <class S>
struct MatrixBackwardState {
  const BackwardTile& tile;
  MatrixBackwardScratch scratch;
  StripLayout layout;
  Panels<S> panels;
  /// Strips of the current block, relative to its first, that each panel sees: [begin, end).
  PanelKeys strips[kMaxPanels];
  /// Asked for during the current block: the next one, or what the next tile begins with.
  ReadAhead ahead;
  std::int64_t turn = 0;  ///< Lines at a time.

  MatrixBackwardState(const BackwardTile& t, float* base)
      : tile(t),
        scratch(MatrixBackwardScratch::carve<S>(t.blocking, base)),
        layout(t.blocking),
        panels(t) {}
};

/// Q and dO of the tile, along the head dim and along the queries, and the per-row numbers.
template <class S>
void load_matrix_tile(const MatrixBackwardState<S>& x) {
  const BackwardTile& t = x.tile;
  const StripLayout& layout = x.layout;
  const std::int64_t head_dim = t.blocking.head_dim;
  const std::int64_t head_dim_v = t.blocking.head_dim_v;
  const std::int64_t rows = whole_strips(t.rows);
  pack_row_pairs<S>(t.q, t.rows, head_dim, x.scratch.q_rows, rows, layout.depth);
  pack_row_pairs<S>(t.d_o, t.rows, head_dim_v, x.scratch.d_o_rows, rows, layout.depth_v);
  for (const Panel& panel : x.panels) {
    Rows q = t.q;
    Rows d_o = t.d_o;
    q.data = static_cast<const bf16*>(q.data) + panel.lane0 * q.stride;
    d_o.data = static_cast<const bf16*>(d_o.data) + panel.lane0 * d_o.stride;
    pack_depth_pairs<S>(q, panel.rows, head_dim, false, x.scratch.q + panel.lane0 * layout.depth,
                        layout.depth, panel.lanes);
    pack_depth_pairs<S>(d_o, panel.rows, head_dim_v, false,
                        x.scratch.d_o + panel.lane0 * layout.depth_v, layout.depth_v, panel.lanes);
    float* d_q_t = x.scratch.d_q_t + panel.lane0 * layout.depth;
    for (std::int64_t i = 0; i < panel.lanes * layout.depth; i += S::kLanes) {
      S::store(d_q_t + i, S::zero());
    }
    if (t.d_q_so_far.data != nullptr) {
      const Rows so_far = {
          static_cast<const float*>(t.d_q_so_far.data) + panel.lane0 * t.d_q_so_far.stride,
          t.d_q_so_far.stride, DType::f32};
      load_transposed<S>(so_far, panel.rows, 0, head_dim, 1.0f, d_q_t, panel.lanes, panel.vectors);
    }
  }
  const auto* o = static_cast<const bf16*>(t.o.data);
  const auto* d_o = static_cast<const bf16*>(t.d_o.data);
  for (std::int64_t i = 0; i < t.rows; ++i) {
    typename S::V sum = S::zero();
    for (std::int64_t d = 0; d < head_dim_v; d += S::kLanes) {
      sum = S::fma(load_up_to<S>(d_o + i * t.d_o.stride + d, head_dim_v - d),
                   load_up_to<S>(o + i * t.o.stride + d, head_dim_v - d), sum);
    }
    set_row_numbers<S>(t, i, sum, x.scratch.lse, x.scratch.offset);
  }
  pad_row_numbers<S>(t.rows, x.scratch.lse, x.scratch.offset);
}

/// P = exp2(f · s − lse) in place; calls meanwhile() for each key.
template <class S, int C, class Meanwhile>
void matrix_probabilities(float* s, std::int64_t n, float factor, const float* lse,
                          Meanwhile&& meanwhile) {
  using V = typename S::V;
  const V largest = S::set(kLargest);
  const V f = S::set(factor);
  V base[C];
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    base[c] = S::sub(S::zero(), S::load(lse + c * S::kLanes));
  }
  for (std::int64_t j = 0; j < n; ++j) {
    meanwhile();
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      float* at = s + (j * C + c) * S::kLanes;
      S::store(at, exp2<S>(S::min(largest, S::fma(f, S::load(at), base[c]))));
    }
  }
}

/// out[j][lane] = s[j][lane] in bf16, for n rows.
template <class S, int C>
void store_key_rows(const float* s, std::int64_t n, bf16* out, std::int64_t stride) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  for (std::int64_t j = 0; j < n; ++j) {
    const float* from = s + j * kLanes;
    bf16* to = out + j * stride;
    TESSERA_UNROLL for (int c = 0; c + 1 < C; c += 2) {
      S::store_halves(to + c * S::kLanes, S::load(from + c * S::kLanes),
                      S::load(from + (c + 1) * S::kLanes));
    }
    if constexpr (C % 2 == 1) {
      S::store_from_f32(to + (C - 1) * S::kLanes, S::load(from + (C - 1) * S::kLanes));
    }
  }
}

/// Zeros in rows [begin, end) × the panel's lanes.
template <class S>
void zero_key_rows(bf16* out, std::int64_t stride, std::int64_t begin, std::int64_t end,
                   std::int64_t lanes) {
  for (std::int64_t j = begin; j < end; ++j) {
    for (std::int64_t i = 0; i < lanes; i += S::kLanes) {
      S::store_from_f32(out + j * stride + i, S::zero());
    }
  }
}

/// P, dS and dQ of one panel; P and dS into the tile's bf16 rows from `row` on.
template <class S, int C>
void matrix_panel_gradients(MatrixBackwardState<S>& x, const Panel& panel,
                            const KeySegment& segment, const PanelStrips& strips,
                            std::int64_t row) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  const BackwardTile& t = x.tile;
  const StripLayout& layout = x.layout;
  const bf16* packed = t.strips + strips.first * t.strip_elements;
  float* p = x.scratch.p;
  float* d_s = x.scratch.d_s;
  const MatrixB q = {x.scratch.q + panel.lane0 * layout.depth, kLanes};
  const MatrixB d_o = {x.scratch.d_o + panel.lane0 * layout.depth_v, kLanes};
  for (std::int64_t i = 0; i < strips.count; ++i) {
    multiply_strip<S, false>(k_strips(t).at(strips.first + i), q, layout.depth, kLanes,
                             p + i * kStrip * kLanes, kLanes);
    multiply_strip<S, false>(v_strips(t).at(strips.first + i), d_o, layout.depth_v, kLanes,
                             d_s + i * kStrip * kLanes, kLanes);
  }
  const ScoreContext context = {&t.rules,
                                t.key_begin + panel.lane0,
                                t.key_end + panel.lane0,
                                panel,
                                strips.j0,
                                strips.n,
                                x.scratch.bias,
                                t.rules.softcap > 0 ? x.scratch.softcap_slope : nullptr};
  const float factor = finish_products<S, C>(context, segment, strips, t.rules.q_scale, p);
  matrix_probabilities<S, C>(p, strips.keys(), factor, x.scratch.lse + panel.lane0, [&x] {
    for (std::int64_t i = 0; i < x.turn; ++i) x.ahead.ask();
  });
  const std::int64_t seen = strips.offset() * kLanes;
  score_gradients<S, C>(context, t.scale, p + seen, d_s + seen, x.scratch.offset + panel.lane0,
                        x.scratch.bias);
  fill_unseen<S>(strips, kLanes, 0.0f, d_s);
  const std::int64_t at = row * x.scratch.rows + panel.lane0;
  store_key_rows<S, C>(p, strips.keys(), x.scratch.p_rows + at, x.scratch.rows);
  store_key_rows<S, C>(d_s, strips.keys(), x.scratch.d_s_rows + at, x.scratch.rows);
  if (t.d_q.data == nullptr) return;
  store_key_pairs<S>(d_s, strips.keys(), kLanes, x.scratch.d_s_pairs);
  float* d_q_t = x.scratch.d_q_t + panel.lane0 * layout.depth;
  for (std::int64_t d = 0; d < layout.depth; d += kStrip) {
    multiply_strip<S, true>({packed + layout.k_t() + d * kStrip, kStrip, t.strip_elements},
                            {x.scratch.d_s_pairs, kLanes}, strips.keys(), kLanes,
                            d_q_t + d * kLanes, kLanes);
  }
}

/// out[key][d] += a[key][row] · b[row][d] for the block's strips, each over the rows of the panels
/// that see it.
template <class S>
void matrix_accumulate_keys(const MatrixBackwardState<S>& x, const bf16* a, const bf16* b,
                            std::int64_t b_columns, std::int64_t columns, std::int64_t strips,
                            float* out, std::int64_t out_stride) {
  for (std::int64_t strip = 0; strip < strips; ++strip) {
    std::int64_t first = x.scratch.rows;
    std::int64_t last = 0;
    for (const Panel& panel : x.panels) {
      const PanelKeys& seen = x.strips[&panel - x.panels.at];
      if (strip < seen.begin || strip >= seen.end) continue;
      if (panel.lane0 < first) first = panel.lane0;
      if (panel.lane0 + panel.lanes > last) last = panel.lane0 + panel.lanes;
    }
    first = first / kStrip * kStrip;
    last = whole_strips(last);
    if (first >= last) continue;
    multiply_strip<S, true>({a + strip * kStrip * x.scratch.rows + first, x.scratch.rows},
                            {b + first * b_columns, b_columns}, last - first,
                            whole_vectors<S>(columns), out + strip * kStrip * out_stride,
                            out_stride);
  }
}

/// Keys [begin, end), within the block that begins at the whole strip `block`.
template <class S>
void matrix_backward_block(MatrixBackwardState<S>& x, const KeySegment& segment, std::int64_t block,
                           std::int64_t begin, std::int64_t end) {
  const BackwardTile& t = x.tile;
  const std::int64_t first = block / kStrip;
  const std::int64_t count = (end + kStrip - 1) / kStrip - first;
  std::int64_t lanes = 0;
  for (const Panel& panel : x.panels) {
    const PanelStrips strips(panel, begin, end);
    PanelKeys& seen = x.strips[&panel - x.panels.at];
    seen = {};
    if (strips.n > 0) {
      seen = {strips.first - first, strips.first - first + strips.count};
      with_vectors<S>(panel.vectors, [&]<int C>() {
        matrix_panel_gradients<S, C>(x, panel, segment, strips, seen.begin * kStrip);
      });
    }
    for (bf16* rows : {x.scratch.p_rows, x.scratch.d_s_rows}) {
      bf16* at = rows + panel.lane0;
      zero_key_rows<S>(at, x.scratch.rows, 0, seen.begin * kStrip, panel.lanes);
      zero_key_rows<S>(at, x.scratch.rows, seen.end * kStrip, count * kStrip, panel.lanes);
    }
    lanes = panel.lane0 + panel.lanes;
  }
  const std::int64_t rest = whole_strips(lanes) - lanes;
  zero_key_rows<S>(x.scratch.p_rows + lanes, x.scratch.rows, 0, count * kStrip, rest);
  zero_key_rows<S>(x.scratch.d_s_rows + lanes, x.scratch.rows, 0, count * kStrip, rest);
  if (t.d_v != nullptr) {
    matrix_accumulate_keys(x, x.scratch.p_rows, x.scratch.d_o_rows, x.layout.depth_v,
                           t.blocking.head_dim_v, count, t.d_v + block * t.d_v_stride,
                           t.d_v_stride);
  }
  if (t.d_k != nullptr) {
    matrix_accumulate_keys(x, x.scratch.d_s_rows, x.scratch.q_rows, x.layout.depth,
                           t.blocking.head_dim, count, t.d_k + block * t.d_k_stride, t.d_k_stride);
  }
}

/// What is read ahead during a block of `keys` keys under a block mask: the operands of the keys
/// [begin, end) of the next one, or, if that is empty, what the next tile begins with.
template <class S>
void plan_ahead(MatrixBackwardState<S>& x, std::int64_t keys, std::int64_t begin,
                std::int64_t end) {
  const BackwardTile& t = x.tile;
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(bf16));
  x.ahead.clear();
  x.turn = 0;
  if (!t.keys.blocks) return;
  if (begin < end) {
    const std::int64_t first = begin / kStrip;
    const std::int64_t count = (end + kStrip - 1) / kStrip - first;
    const std::int64_t stride = t.strip_elements * kSize;
    const auto rows = [&](const StripsOfRows& of, std::int64_t depth) {
      const MatrixA at = of.at(first);
      x.ahead.add(at.data, depth * kSize, at.stride * kSize, end - begin);
    };
    if (first + count <= t.k_in_place) rows(k_strips(t), x.layout.depth);
    if (first + count <= t.v_in_place) rows(v_strips(t), x.layout.depth_v);
    x.ahead.add(t.strips + first * t.strip_elements + x.layout.k_t(),
                kStrip * x.layout.depth * kSize, stride, count);
  } else {
    for (const RowsToCome& next : t.coming) {
      if (next.count == 0) continue;
      const std::int64_t size = next.rows.dtype == DType::f32 ? 4 : 2;
      x.ahead.add(next.rows.data, next.bytes, next.rows.stride * size, next.count);
    }
  }
  x.turn = (x.ahead.lines + keys - 1) / keys;
}

template <class S>
void matrix_backward_tile(const BackwardTile& tile, float* base) {
  MatrixBackwardState<S> x(tile, base);
  load_matrix_tile(x);
  S::configure_tiles();
  const std::int64_t step = tile.blocking.block_kv;
  const auto end_of = [step](const KeySegment& of, std::int64_t block) {
    return block + step < of.end ? block + step : of.end;
  };
  KeyWalk walk = tile.keys;
  KeySegment segment, coming;
  bool more = next_segment(walk, coming);
  while (more) {
    segment = coming;
    more = next_segment(walk, coming);
    for (std::int64_t block = segment.begin / kStrip * kStrip; block < segment.end; block += step) {
      const std::int64_t end = end_of(segment, block);
      if (end < segment.end) {
        plan_ahead(x, end - block, end, end_of(segment, end));
      } else {
        const std::int64_t next = more ? coming.begin / kStrip * kStrip : 0;
        plan_ahead(x, end - block, next, more ? end_of(coming, next) : 0);
      }
      matrix_backward_block(x, segment, block, block > segment.begin ? block : segment.begin, end);
    }
  }
  S::release_tiles();
  if (tile.d_q.data == nullptr) return;
  for (const Panel& panel : x.panels) {
    store_panel<S>(panel, x.scratch.d_q_t + panel.lane0 * x.layout.depth, tile.blocking.head_dim,
                   tile.d_q);
  }
}

}  // namespace tessera::cpu
