// Quantised forward with products of bf16: the pipeline of kernel/matrix_forward.hpp, with S = K ·
// Qᵀ in bytes and Oᵀ += Vᵀ · P in bf16, in which E4M3 numbers are exact; on matrix tiles, or
// without them with dot products of quads and pairs in vectors.
//
//   K     [key][words]             64 bytes of 16 keys to a tile
//   Vᵀ    strips [Dv][32 keys]     bf16
//   Q     [word][query]            of a panel
//   P     [key / 2][query][2]      bf16, rounded to E4M3 or to bf16's own precision
//
// Between the products, weights are made from the integers as the tiles leave them. Strips that a
// panel does not see whole get f32 scores first, with −inf where there is no key.
#pragma once

#include "cpu/kernel/matrix_forward.hpp"
#include "cpu/kernel/sage_softmax.hpp"

namespace tessera::cpu {

struct SageMatrixScratch {
  std::int32_t* q_t;  ///< Per panel [words][lanes].
  float* o_t;         ///< Per panel [depth_v][lanes].
  SageRows rows;
  float* alpha;  ///< [one panel] what the last step multiplies O by.
  float* s[2];   ///< [block_kv][one panel] integers or scores of one unit and of the next.
  bf16* p[2];    ///< [block_kv / 2][one panel][2] likewise.
  float* bias;   ///< [block_kv][one panel]
  float* shift;  ///< [block_kv + one strip]
  std::int64_t floats;

  template <class S>
  static SageMatrixScratch carve(const Blocking& b, std::int64_t words, float* base) {
    constexpr std::int64_t kPanel = S::kTileVectors * S::kLanes;
    Carver carver(base);
    SageMatrixScratch x;
    x.q_t = reinterpret_cast<std::int32_t*>(carver.floats(b.tile_q * words));
    x.o_t = carver.floats(b.tile_q * whole_strips(b.head_dim_v));
    x.rows = SageRows::carve(carver, b.tile_q);
    x.alpha = carver.floats(kPanel);
    for (int i = 0; i < 2; ++i) {
      x.s[i] = carver.floats(b.block_kv * kPanel);
      x.p[i] = reinterpret_cast<bf16*>(carver.floats(b.block_kv * kPanel / 2));
    }
    x.bias = carver.floats(b.block_kv * kPanel);
    x.shift = carver.floats(b.block_kv + kStrip);
    x.floats = carver.used();
    return x;
  }
};

/// Head dims end here.
inline constexpr std::int64_t kMostValueColumns = 512;

/// V of a block of 64 keys as two strips of columns.
template <class S>
void quantise_value_strips(const TokenBlock& block, const ValueFormat& format, std::int64_t stride,
                           void* out) {
  bf16 rows[kStrip * kMostValueColumns];
  with_pointer(block.x, [&](const auto* data) {
    for (std::int64_t first = 0; first < block.count; first += kStrip) {
      for (std::int64_t i = 0; i < kStrip; ++i) {
        quantise_value_row<S>(block, data + (first + i) * block.x.stride,
                              takes_part(block, first + i), format.inverse, rows + i * stride);
      }
      pack_columns<S>({rows, stride, DType::bf16}, block.columns, ~0u,
                      static_cast<bf16*>(out) + first * stride, stride);
    }
  });
}

/// S = K · Qᵀ of a unit, to come. A word of four bytes counts as two bf16.
template <class S>
ProductSeries<typename S::Bytes> sage_scores_of(const SageTile& tile,
                                                const SageMatrixScratch& scratch,
                                                const MatrixUnit& unit, float* s) {
  const std::int64_t lanes = unit.panel->lanes;
  const std::int64_t depth = 2 * tile.words;
  ProductSeries<typename S::Bytes> product;
  product.a = {reinterpret_cast<const bf16*>(tile.k_words) + unit.places[0] * kStrip * depth,
               depth};
  product.b = {reinterpret_cast<const bf16*>(scratch.q_t + unit.panel->lane0 * tile.words), lanes};
  product.depth = depth;
  product.columns = lanes;
  product.c = s;
  product.c_stride = lanes;
  product.strips = unit.strips;
  product.a_strip = kStrip * depth;
  if constexpr (S::Bytes::kSumsHaveStarts) {
    product.starts.of_rows = tile.k_correction + unit.places[0] * kStrip;
  }
  return product;
}

/// O += Vᵀ · P of a unit, to come.
template <class S>
ProductSeries<S> sage_values_of(const SageTile& tile, const SageMatrixScratch& scratch,
                                const MatrixUnit& unit, const bf16* p) {
  const std::int64_t lanes = unit.panel->lanes;
  const std::int64_t depth_v = tile.values.stride;
  const std::int64_t strip = kStrip * depth_v;
  ProductSeries<S> product;
  product.a = {static_cast<const bf16*>(tile.values.data) + unit.places[0] * strip, kStrip, strip};
  product.b = {p, lanes};
  product.depth = unit.keys();
  product.columns = lanes;
  product.c = scratch.o_t + unit.panel->lane0 * depth_v;
  product.c_stride = lanes;
  product.strips = depth_v / kStrip;
  product.a_strip = kStrip * kStrip;
  product.add = true;
  return product;
}

/// The shifts of a block of keys, found when its first panel needs them.
struct BlockShifts {
  std::int64_t begin = 0;  ///< Keys whose shifts are known.
  std::int64_t end = 0;

  /// Those of the unit's strips, of which the keys that it sees count.
  template <class S>
  const float* of(const SageTile& tile, const PanelStrips& strips, float* shift) {
    if (tile.q_mean == nullptr) return nullptr;
    const std::int64_t first = strips.first * kStrip;
    if (first != begin || strips.j0 + strips.n > end) {
      begin = first;
      end = strips.j0 + strips.n;
      // Keys before j0 in its strip may lie in a block that nobody lists.
      for (std::int64_t j = 0; j < strips.keys(); j += S::kLanes) S::store(shift + j, S::zero());
      shifts_of_keys<S>(tile, strips.j0, strips.n, shift + strips.offset());
      if (strips.offset() != 0) begin = -1;
    }
    return shift;
  }
};

/// The background goes on evenly over `turns` turns.
template <class S>
struct Pace {
  Background<S, typename S::Bytes>& background;
  std::int64_t turns;
  std::int64_t steps, lines;
  std::int64_t steps_due = 0;
  std::int64_t lines_due = 0;

  TESSERA_INLINE Pace(Background<S, typename S::Bytes>& of, std::int64_t over)
      : background(of), turns(over), steps(of.steps()), lines(of.lines()) {}
  TESSERA_INLINE void operator()() {
    for (steps_due += steps; steps_due >= turns; steps_due -= turns) background.step();
    for (lines_due += lines; lines_due >= turns; lines_due -= turns) background.ask();
  }
};

/// The unit's weights as pairs of keys in `p`; false: they are of no use.
template <class S, int C, ScoreForm kForm, bool kRenewed>
bool weigh_matrix_unit(const SageTile& tile, const SageRows& rows, const SageScores& scores,
                       bf16* p, Background<S, typename S::Bytes>& background) {
  const auto store = [p](std::int64_t j, int c, const typename S::V(&weight)[2]) {
    S::store(reinterpret_cast<float*>(p + (j * C + 2 * c) * S::kLanes),
             S::exact_pairs(weight[0], weight[1]));
  };
  Pace<S> pace(background, scores.n / 2);
  if (tile.lse != nullptr) {
    return make_sage_weights<S, C, kForm, kRenewed, true, 2>(scores, rows, tile.weights, store,
                                                             pace);
  }
  return make_sage_weights<S, C, kForm, kRenewed, false, 2>(scores, rows, tile.weights, store,
                                                            pace);
}

/// The same in the place of the scores, for dropout to act on.
template <class S, int C>
void weigh_in_place(const SageTile& tile, const SageRows& rows, const SageScores& scores) {
  float* s = scores.s;
  const auto store = [s](std::int64_t j, int c, const typename S::V(&weight)[1]) {
    S::store(s + (j * C + c) * S::kLanes, weight[0]);
  };
  make_sage_weights<S, C, ScoreForm::floats, true, true, 1>(scores, rows, tile.weights, store,
                                                            [] {});
}

/// Products to f32 scores with every rule applied, −inf in the strips' keys that are not seen.
template <class S, int C>
void finish_sage_scores(const SageTile& tile, const SageMatrixScratch& scratch,
                        const MatrixUnit& unit, const SageScores& scores) {
  const Panel& panel = *unit.panel;
  const PanelStrips& strips = unit.piece[0].strips;
  dequantise<S, C>(scores, scratch.rows.from(panel.lane0));
  const ScoreContext context = {&tile.rules,
                                tile.key_begin + panel.lane0,
                                tile.key_end + panel.lane0,
                                panel,
                                strips.j0,
                                strips.n,
                                scratch.bias,
                                nullptr};
  finish_scores<S, C>(context, unit.piece[0].segment, scores.s + strips.offset() * C * S::kLanes);
  fill_unseen<S>(strips, C * S::kLanes, kMinusInfinity, scores.s);
}

/// Scores to weights for one unit while the scores of the next unit and the output of the last one
/// are multiplied; then O is made ready for this unit's output.
template <class S, int C>
void sage_matrix_softmax(const SageTile& tile, const SageMatrixScratch& scratch,
                         const MatrixUnit& unit, const SageScores& scores, bf16* p,
                         Background<S, typename S::Bytes>& background) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  const Panel& panel = *unit.panel;
  const SageRows rows = scratch.rows.from(panel.lane0);
  const PanelStrips& strips = unit.piece[0].strips;
  const bool integers =
      strips.n == strips.keys() &&
      stay_integers(tile.rules, unit.piece[0].segment, panel, strips.j0, strips.n);
  if (!integers) finish_sage_scores<S, C>(tile, scratch, unit, scores);
  // As if the maxima known so far would do; if not, once more with those of these scores.
  bool settled = false;
  if (!tile.rules.dropout && have_maxima<S, C>(rows)) {
    settled = with_form(scores, integers, tile.pairs_share_scales, [&]<ScoreForm kForm>() {
      return weigh_matrix_unit<S, C, kForm, false>(tile, rows, scores, p, background);
    });
  }
  if (!settled) {
    if (integers) dequantise<S, C>(scores, rows);
    renew_sage_maxima<S, C>(scores, rows, scratch.alpha);
    if (tile.rules.dropout) {
      weigh_in_place<S, C>(tile, rows, scores);
    } else {
      weigh_matrix_unit<S, C, ScoreForm::floats, true>(tile, rows, scores, p, background);
    }
  }
  if (tile.rules.dropout) {
    const ScoreContext context = {&tile.rules, nullptr,  nullptr, panel,
                                  strips.j0,   strips.n, nullptr, nullptr};
    apply_dropout<S, C>(context, scores.s + strips.offset() * kLanes);
    add_applied<S, C>(scores.s, scores.n, rows);
    store_key_pairs<S>(scores.s, scores.n, kLanes, p);
  }
  background.finish();
  if (!settled) {
    const std::int64_t depth_v = tile.values.stride;
    rescale_output<S, C>(scratch.alpha, depth_v, scratch.o_t + panel.lane0 * depth_v);
  }
}

template <class S>
void sage_matrix_tile(const SageTile& tile, float* base) {
  const SageMatrixScratch scratch = SageMatrixScratch::carve<S>(tile.blocking, tile.words, base);
  const std::int64_t depth_v = tile.values.stride;
  const std::int64_t k_bytes = kStrip * tile.words * 4;
  const std::int64_t v_bytes = kStrip * depth_v * 2;
  const Panels<S> panels(tile);
  begin_sage_tile<S>(tile, panels, depth_v, scratch.q_t, scratch.o_t, scratch.rows);
  // A unit is of one piece: scales of keys lie side by side.
  MatrixUnits<S> units(tile, panels, 1);
  MatrixUnit ring[3];  // this unit and the two after it
  Background<S, typename S::Bytes> background;
  const auto ask_for = [&](const void* from, std::int64_t bytes, const MatrixUnit& next) {
    background.ahead.add(static_cast<const char*>(from) + next.places[0] * bytes,
                         next.strips * bytes, 0, 1);
  };
  BlockShifts shifts;
  S::configure_tiles();
  bool more = units.next(ring[0]);
  bool more_later = more && units.next(ring[1]);
  if (more) background.scores = sage_scores_of<S>(tile, scratch, ring[0], scratch.s[0]);
  background.finish();
  for (int turn = 0; more; ++turn) {
    const MatrixUnit& unit = ring[turn % 3];
    const MatrixUnit& coming = ring[(turn + 1) % 3];
    MatrixUnit& later = ring[(turn + 2) % 3];
    more = more_later;
    more_later = more && units.next(later);
    background.ahead.clear();
    if (more) {
      background.scores = sage_scores_of<S>(tile, scratch, coming, scratch.s[(turn + 1) % 2]);
      if (coming.block != unit.block) ask_for(tile.values.data, v_bytes, coming);
    }
    if (more_later && later.block != coming.block) ask_for(tile.k_words, k_bytes, later);
    const SageScores scores = {scratch.s[turn % 2], unit.keys(),
                               tile.k_scale + unit.places[0] * kStrip,
                               shifts.of<S>(tile, unit.piece[0].strips, scratch.shift)};
    with_vectors<S>(unit.panel->vectors, [&]<int C>() {
      sage_matrix_softmax<S, C>(tile, scratch, unit, scores, scratch.p[turn % 2], background);
    });
    background.values = sage_values_of<S>(tile, scratch, unit, scratch.p[turn % 2]);
  }
  background.finish();
  S::release_tiles();
  for (const Panel& panel : panels) {
    finish_sage_panel<S>(tile, panel, scratch.rows.from(panel.lane0),
                         scratch.o_t + panel.lane0 * depth_v);
  }
}

template <class S>
std::int64_t sage_matrix_scratch_floats(const Blocking& blocking, std::int64_t words) {
  return SageMatrixScratch::carve<S>(blocking, words, nullptr).floats;
}

template <class S>
constexpr SageIsa make_sage_matrix_isa(const Isa& exact) {
  return {&exact,
          S::kIntsPerWord,
          true,
          block_statistics<S>,
          token_magnitudes<S>,
          quantise_tokens<S>,
          quantise_value_strips<S>,
          sage_matrix_scratch_floats<S>,
          sage_matrix_tile<S>};
}

}  // namespace tessera::cpu
