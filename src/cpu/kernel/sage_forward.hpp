// Quantised forward on vectors: one tile of query rows of one head against all keys it may see.
//
//   for each block of keys                                 integers of K, 16-bit V, L2
//     for each panel of ≤ 3 vectors of queries
//       S[key][query]  = K · Qᵀ                            integer dot products of whole words
//       P = round(2^(S · scales − m)), l                   E4M3 or 16-bit numbers in f32
//       O[d][query]    = O · α + Vᵀ · P                    f32 multiply-adds, of exact numbers
//   s_v O / l + v̄, transposed back into the caller's rows
//
// A unit's weights are made as if the rows' maxima so far would do; their sums tell if one is too
// large. Then the unit starts anew with renewed maxima, since its weights have taken the place of
// its scores; that is rare after the first blocks.
#pragma once

#include "cpu/kernel/sage_softmax.hpp"

namespace tessera::cpu {

struct SageScratch {
  std::int32_t* q_t;  ///< Per panel [words][lanes].
  float* o_t;         ///< Per panel [head_dim_v][lanes].
  SageRows rows;
  float* alpha;  ///< [one panel] what the last step multiplies O by; 1 between steps.
  float* s;      ///< [block_kv][one panel] integers, scores, weights.
  float* bias;   ///< [block_kv][one panel]
  float* shift;  ///< [block_kv]
  float* v;      ///< [block_kv][head_dim_v] as f32.
  std::int64_t floats;

  template <class S>
  static SageScratch carve(const Blocking& b, std::int64_t words, float* base) {
    constexpr std::int64_t kPanel = S::kTileVectors * S::kLanes;
    Carver carver(base);
    SageScratch x;
    x.q_t = reinterpret_cast<std::int32_t*>(carver.floats(b.tile_q * words));
    x.o_t = carver.floats(b.tile_q * b.head_dim_v);
    x.rows = SageRows::carve(carver, b.tile_q);
    x.alpha = carver.floats(kPanel);
    x.s = carver.floats(b.block_kv * kPanel);
    x.bias = carver.floats(b.block_kv * kPanel);
    x.shift = carver.floats(whole_vectors<S>(b.block_kv));
    x.v = carver.floats(b.block_kv * whole_vectors<S>(b.head_dim_v));
    x.floats = carver.used();
    return x;
  }
};

/// Integer sums of R keys, whose rows are `stride` words apart, × C vectors of queries.
template <class S, int R, int C>
TESSERA_INLINE void multiply_key_words(const std::int32_t* k, std::int64_t stride,
                                       const std::int32_t* correction, std::int64_t words,
                                       const std::int32_t* q_t, float* s) {
  typename S::I at[R][C];
  TESSERA_UNROLL for (int r = 0; r < R; ++r) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) at[r][c] = S::set_int(correction[r]);
  }
  for (std::int64_t w = 0; w < words; ++w) {
    typename S::I q[C];
    TESSERA_UNROLL for (int c = 0; c < C; ++c) q[c] = S::load_int(q_t + c * S::kLanes);
    TESSERA_UNROLL for (int r = 0; r < R; ++r) {
      const typename S::I word = S::set_int(k[r * stride + w]);
      TESSERA_UNROLL for (int c = 0; c < C; ++c) at[r][c] = S::add_products(at[r][c], word, q[c]);
    }
    q_t += C * S::kLanes;
  }
  TESSERA_UNROLL for (int r = 0; r < R; ++r) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      S::store(s + (r * C + c) * S::kLanes, S::as_float(at[r][c]));
    }
  }
}

/// A panel and the keys of one block that it sees.
struct SageUnit {
  KeySegment segment;
  std::int64_t j0 = 0;
  std::int64_t n = 0;
  bool integers = false;
  const float* v = nullptr;  ///< f32 rows from key j0 on.
  std::int64_t v_stride = 0;
  SageScores scores;
};

/// The unit's scores, anew.
template <class S, int C>
void score_unit(const SageTile& tile, const SageScratch& scratch, const Panel& panel,
                const SageUnit& unit) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  const std::int32_t* k = tile.k_words + unit.j0 * tile.words;
  const std::int64_t words = (tile.blocking.head_dim + S::kIntsPerWord - 1) / S::kIntsPerWord;
  for_row_tiles<S>(unit.n, [&]<int R>(std::int64_t j) {
    multiply_key_words<S, R, C>(k + j * tile.words, tile.words, tile.k_correction + unit.j0 + j,
                                words, scratch.q_t + panel.lane0 * tile.words,
                                unit.scores.s + j * kLanes);
  });
  if (unit.integers) return;
  dequantise<S, C>(unit.scores, scratch.rows.from(panel.lane0));
  const ScoreContext context = {&tile.rules,
                                tile.key_begin + panel.lane0,
                                tile.key_end + panel.lane0,
                                panel,
                                unit.j0,
                                unit.n,
                                scratch.bias,
                                nullptr};
  finish_scores<S, C>(context, unit.segment, unit.scores.s);
}

/// The unit's weights in the place of its scores; false: they are of no use.
template <class S, int C, ScoreForm kForm, bool kRenewed>
bool weigh_unit(const SageTile& tile, const SageRows& rows, const SageUnit& unit) {
  float* s = unit.scores.s;
  const auto store = [s](std::int64_t j, int c, const typename S::V(&weight)[1]) {
    S::store(s + (j * C + c) * S::kLanes, weight[0]);
  };
  if (tile.lse != nullptr) {
    return make_sage_weights<S, C, kForm, kRenewed, true, 1>(unit.scores, rows, tile.weights, store,
                                                             [] {});
  }
  return make_sage_weights<S, C, kForm, kRenewed, false, 1>(unit.scores, rows, tile.weights, store,
                                                            [] {});
}

template <class S, int C>
void sage_unit(const SageTile& tile, const SageScratch& scratch, const Panel& panel,
               SageUnit& unit) {
  const SageRows rows = scratch.rows.from(panel.lane0);
  float* s = unit.scores.s;
  score_unit<S, C>(tile, scratch, panel, unit);
  bool settled = false;
  if (have_maxima<S, C>(rows)) {
    settled = with_form(unit.scores, unit.integers, false, [&]<ScoreForm kForm>() {
      return weigh_unit<S, C, kForm, false>(tile, rows, unit);
    });
    if (!settled) score_unit<S, C>(tile, scratch, panel, unit);
  }
  if (!settled) {
    if (unit.integers) dequantise<S, C>(unit.scores, rows);
    renew_sage_maxima<S, C>(unit.scores, rows, scratch.alpha);
    weigh_unit<S, C, ScoreForm::floats, true>(tile, rows, unit);
  }
  if (tile.rules.dropout) {
    const ScoreContext context = {&tile.rules, nullptr, nullptr, panel,
                                  unit.j0,     unit.n,  nullptr, nullptr};
    apply_dropout<S, C>(context, s);
    add_applied<S, C>(s, unit.n, rows);
  }
  const std::int64_t head_dim_v = tile.blocking.head_dim_v;
  accumulate_output<S, C>(unit.v, unit.v_stride, s, unit.n, head_dim_v, scratch.alpha,
                          scratch.o_t + panel.lane0 * head_dim_v);
  if (settled) return;
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    S::store(scratch.alpha + c * S::kLanes, S::set(1.0f));
  }
}

template <class S>
void sage_forward_tile(const SageTile& tile, float* base) {
  const SageScratch scratch = SageScratch::carve<S>(tile.blocking, tile.words, base);
  const std::int64_t head_dim_v = tile.blocking.head_dim_v;
  const Panels<S> panels(tile);
  begin_sage_tile<S>(tile, panels, head_dim_v, scratch.q_t, scratch.o_t, scratch.rows);
  for (int c = 0; c < S::kTileVectors; ++c) {
    S::store(scratch.alpha + c * S::kLanes, S::set(1.0f));
  }

  KeyWalk walk = tile.keys;
  KeySegment segment;
  while (next_segment(walk, segment)) {
    for (std::int64_t begin = segment.begin; begin < segment.end; begin += tile.blocking.block_kv) {
      const std::int64_t end = begin + tile.blocking.block_kv < segment.end
                                   ? begin + tile.blocking.block_kv
                                   : segment.end;
      const KeyRows v = key_rows<S>(tile.values, begin, end, head_dim_v, scratch.v);
      if (tile.q_mean != nullptr) shifts_of_keys<S>(tile, begin, end - begin, scratch.shift);
      for (const Panel& panel : panels) {
        SageUnit unit;
        unit.segment = segment;
        unit.j0 = begin > panel.begin ? begin : panel.begin;
        unit.n = (end < panel.end ? end : panel.end) - unit.j0;
        if (unit.n <= 0) continue;
        unit.integers = stay_integers(tile.rules, segment, panel, unit.j0, unit.n);
        unit.v = v.data + (unit.j0 - begin) * v.stride;
        unit.v_stride = v.stride;
        unit.scores = {scratch.s, unit.n, tile.k_scale + unit.j0,
                       tile.q_mean == nullptr ? nullptr : scratch.shift + (unit.j0 - begin)};
        with_vectors<S>(panel.vectors,
                        [&]<int C>() { sage_unit<S, C>(tile, scratch, panel, unit); });
      }
    }
  }
  for (const Panel& panel : panels) {
    finish_sage_panel<S>(tile, panel, scratch.rows.from(panel.lane0),
                         scratch.o_t + panel.lane0 * head_dim_v);
  }
}

template <class S>
std::int64_t sage_scratch_floats(const Blocking& blocking, std::int64_t words) {
  return SageScratch::carve<S>(blocking, words, nullptr).floats;
}

template <class S>
constexpr SageIsa make_sage_isa(const Isa& exact) {
  return {&exact,
          S::kIntsPerWord,
          false,
          block_statistics<S>,
          token_magnitudes<S>,
          quantise_tokens<S>,
          quantise_value_rows<S>,
          sage_scratch_floats<S>,
          sage_forward_tile<S>};
}

}  // namespace tessera::cpu
