// Forward on matrix tiles: one tile of query rows of one head against all keys it may see.
//
//   for each block of keys, in strips of 32                 K and packed Vᵀ, L2
//     for each panel of up to 4 vectors of queries          S and P of a block: one unit
//       S[key][query]  = K · Qᵀ                             bf16 tiles, f32 sums
//       masks, m, P = exp2(f S − m), l                      the vector kernels' steps, f32
//       O[d][query]    = O · α + Vᵀ · P                     P rounded to bf16, f32 sums
//   O / l, transposed back into the caller's rows
//
// The three lines are a pipeline: while the vector units make P of one unit, the tile multiplier
// makes S of the next and O of the last. Its instructions are strewn among theirs (ProductSeries),
// and the processor finds both side by side in its window. Hence two buffers of S and of P; O of a
// panel is rescaled when its last unit's output has been added. The pipeline goes on from tile to
// tile, so several of them have Q and O in scratch.
//
// A row's maximum is renewed when a score exceeds it by more than kLargestExponent. Most units find
// none and go over their scores once.
//
// Q is not scaled on the way in, that would round it: the factor scale · log₂e joins the
// subtraction of the maximum. A block of keys is made of pieces, that begin and end at whole
// strips: part of a segment, or under a block mask several short ones, so that O is loaded and
// stored once for all of them. The keys of a strip that the panel does not see have the score −inf,
// and V has zeros where nobody sees them.
#pragma once

#include "cpu/kernel/forward.hpp"
#include "cpu/kernel/matrix_weights.hpp"

namespace tessera::cpu {

struct MatrixForwardScratch {
  // Of each slot:
  bf16* q;     ///< Per panel [depth / 2][lanes][2].
  float* o_t;  ///< Per panel [depth_v][lanes].
  float* m;    ///< [tile_q] running maximum, base 2.
  float* l;    ///< [tile_q] running sum.
  // Of all:
  float* alpha;  ///< [one panel] what the last step multiplies O and l by.
  float* s[2];   ///< [block_kv][one panel] scores of one unit and of the next; with dropout then P.
  bf16* p[2];    ///< [block_kv / 2][one panel][2] likewise.
  float* bias;   ///< [block_kv][one panel]
  std::int64_t floats;

  template <class S>
  static MatrixForwardScratch carve(const Blocking& b, float* base, int slot) {
    constexpr std::int64_t kPanel = S::kTileVectors * S::kLanes;
    const StripLayout layout(b);
    Carver carver(base);
    MatrixForwardScratch x;
    for (int i = 0; i < TileSource::kSlots; ++i) {
      MatrixForwardScratch y;
      y.q = reinterpret_cast<bf16*>(carver.floats(b.tile_q * layout.depth / 2));
      y.o_t = carver.floats(b.tile_q * layout.depth_v);
      y.m = carver.floats(b.tile_q);
      y.l = carver.floats(b.tile_q);
      if (i == slot) x = y;
    }
    x.alpha = carver.floats(kPanel);
    for (int i = 0; i < 2; ++i) {
      x.s[i] = carver.floats(b.block_kv * kPanel);
      x.p[i] = reinterpret_cast<bf16*>(carver.floats(b.block_kv * kPanel / 2));
    }
    x.bias = carver.floats(b.block_kv * kPanel);
    x.floats = carver.used();
    return x;
  }
};

/// S = K · Qᵀ of a unit, to come.
template <class S>
ProductSeries<S> scores_of(const ForwardTile& tile, const MatrixForwardScratch& scratch,
                           const MatrixUnit& unit, float* s) {
  const StripLayout layout(tile.blocking);
  const std::int64_t lanes = unit.panel->lanes;
  ProductSeries<S> product;
  product.rows = k_strips(tile);
  product.places = unit.places;
  product.a = product.rows.at(unit.places[0]);
  product.b = {scratch.q + unit.panel->lane0 * layout.depth, lanes};
  product.depth = layout.depth;
  product.columns = lanes;
  product.c = s;
  product.c_stride = lanes;
  product.strips = unit.strips;
  return product;
}

/// O += Vᵀ · P of a unit, to come.
template <class S>
ProductSeries<S> values_of(const ForwardTile& tile, const MatrixForwardScratch& scratch,
                           const MatrixUnit& unit, const bf16* p) {
  const StripLayout layout(tile.blocking);
  const std::int64_t lanes = unit.panel->lanes;
  ProductSeries<S> product;
  product.a = {tile.strips + layout.v(), kStrip, tile.strip_elements, unit.places};
  product.b = {p, lanes};
  product.depth = unit.keys();
  product.columns = lanes;
  product.c = scratch.o_t + unit.panel->lane0 * layout.depth_v;
  product.c_stride = lanes;
  product.strips = layout.depth_v / kStrip;
  product.a_strip = kStrip * kStrip;
  product.add = true;
  return product;
}

template <class S, int C>
ScoreContext context_of(const ForwardTile& tile, const MatrixForwardScratch& scratch,
                        const Panel& panel, const PanelStrips& strips) {
  return {&tile.rules,
          tile.key_begin + panel.lane0,
          tile.key_end + panel.lane0,
          panel,
          strips.j0,
          strips.n,
          scratch.bias,
          nullptr};
}

/// Applies the score rules to a unit's products and returns what is left to multiply them by.
template <class S, int C>
float finish_unit(const ForwardTile& tile, const MatrixForwardScratch& scratch,
                  const MatrixUnit& unit, float* s) {
  float factor = 1;
  for (int i = 0; i < unit.pieces; ++i) {
    const UnitPiece& piece = unit.piece[i];
    factor =
        finish_products<S, C>(context_of<S, C>(tile, scratch, *unit.panel, piece.strips),
                              piece.segment, piece.strips, __builtin_fabsf(tile.rules.q_scale), s);
    s += piece.strips.keys() * C * S::kLanes;
  }
  return factor;
}

/// Dropout on a unit's weights.
template <class S, int C>
void drop_weights(const ForwardTile& tile, const MatrixForwardScratch& scratch,
                  const MatrixUnit& unit, float* s) {
  for (int i = 0; i < unit.pieces; ++i) {
    const PanelStrips& strips = unit.piece[i].strips;
    apply_dropout<S, C>(context_of<S, C>(tile, scratch, *unit.panel, strips),
                        s + strips.offset() * C * S::kLanes);
    s += strips.keys() * C * S::kLanes;
  }
}

/// Scores to weights for one unit while the scores of the next unit and the output of the last one
/// are multiplied; then O is made ready for this unit's output.
template <class S, int C>
void matrix_softmax(const ForwardTile& tile, const MatrixForwardScratch& scratch,
                    const MatrixUnit& unit, float* s, bf16* p, Background<S>& background) {
  const Panel& panel = *unit.panel;
  const float factor = finish_unit<S, C>(tile, scratch, unit, s);
  const std::int64_t keys = unit.keys();
  float* m = scratch.m + panel.lane0;
  float* l = scratch.l + panel.lane0;
  const bool dropout = tile.rules.dropout;
  // As if the maxima known so far would do; if not, once more with those of these scores.
  const bool settled = !dropout && m[0] != kMinusInfinity &&
                       make_weights<S, C>(s, keys, factor, m, l, false, false, p, background);
  if (!settled) {
    renew_maxima<S, C>(s, keys, factor, m, l, scratch.alpha);
    make_weights<S, C>(s, keys, factor, m, l, true, dropout, p, background);
  }
  if (dropout) {
    drop_weights<S, C>(tile, scratch, unit, s);
    store_key_pairs<S>(s, keys, C * S::kLanes, p);
  }
  background.finish();
  const std::int64_t depth_v = StripLayout(tile.blocking).depth_v;
  if (!settled) {
    rescale_output<S, C>(scratch.alpha, depth_v, scratch.o_t + panel.lane0 * depth_v);
  }
}

/// Q packed, O and the running numbers at their start.
template <class S>
void begin_matrix_tile(const ForwardTile& tile, const MatrixForwardScratch& scratch,
                       const Panels<S>& panels) {
  const StripLayout layout(tile.blocking);
  for (const Panel& panel : panels) {
    Rows q = tile.q;
    q.data = static_cast<const bf16*>(q.data) + panel.lane0 * q.stride;
    // A negative scale belongs to Q, so that the largest product has the largest score.
    pack_depth_pairs<S>(q, panel.rows, tile.blocking.head_dim, tile.rules.q_scale < 0,
                        scratch.q + panel.lane0 * layout.depth, layout.depth, panel.lanes);
    for (std::int64_t i = 0; i < panel.lanes * layout.depth_v; i += S::kLanes) {
      S::store(scratch.o_t + panel.lane0 * layout.depth_v + i, S::zero());
    }
    for (std::int64_t i = 0; i < panel.lanes; i += S::kLanes) {
      S::store(scratch.m + panel.lane0 + i, S::set(kMinusInfinity));
      S::store(scratch.l + panel.lane0 + i, S::zero());
    }
  }
}

/// The forward pass over the tiles of a source.
template <class S>
class MatrixForward {
 public:
  MatrixForward(const TileSource& source, float* base) : source_(source), base_(base) {}

  void run() {
    S::configure_tiles();
    do {
      paused_ = false;
      run_pipeline();
    } while (paused_);
    S::release_tiles();
  }

 private:
  /// Under a block mask the pipeline goes on from tile to tile, unless one has more units than
  /// this. Else it ends with the tile: until then the next one's scratch has left the caches, and a
  /// tile that is taken early is one that nobody else can help with.
  static constexpr std::int64_t kFewUnits = 32;

  void run_pipeline() {
    // The unit before, whose output is multiplied, this one and the two after it.
    MatrixUnit ring[4];
    bool more = next_unit(ring[0]);
    bool more_later = more && next_unit(ring[1]);
    if (more) prepare_scores(ring[0], 0);
    background_.finish();
    for (int turn = 0; more; ++turn) {
      const MatrixUnit& unit = ring[turn % 4];
      const MatrixUnit& coming = ring[(turn + 1) % 4];
      MatrixUnit& later = ring[(turn + 2) % 4];
      more = more_later;
      more_later = more && next_unit(later);
      background_.ahead.clear();
      if (more) {
        prepare_scores(coming, turn + 1);
        if (!coming.has_keys_of(unit)) ask_for_values(coming);
      }
      if (more_later && !later.has_keys_of(coming)) ask_for_keys(later);
      const Slot& slot = slots_[unit.slot];
      with_vectors<S>(unit.panel->vectors, [&]<int C>() {
        matrix_softmax<S, C>(slot.tile, slot.scratch, unit, slot.scratch.s[turn % 2],
                             slot.scratch.p[turn % 2], background_);
      });
      if (turn > 0) end_unit(ring[(turn + 3) % 4]);
      background_.values = values_of<S>(slot.tile, slot.scratch, unit, slot.scratch.p[turn % 2]);
      if (more) continue;
      background_.finish();
      end_unit(unit);
    }
  }

  struct Slot {
    ForwardTile tile;
    MatrixForwardScratch scratch;
    Panels<S> panels;
    MatrixUnits<S> units;
    std::int64_t count = 0;       ///< Of the units that were handed out, …
    std::int64_t open_units = 0;  ///< … and of those that are not yet in O.
    bool in_use = false;
    bool begun = false;      ///< Q is packed.
    bool exhausted = false;  ///< All units have been handed out.
  };

  /// The next unit of the newest tile, or of one more.
  bool next_unit(MatrixUnit& unit) {
    for (;;) {
      if (newest_ >= 0) {
        Slot& slot = slots_[newest_];
        unit.slot = newest_;
        if (slot.units.next(unit)) {
          ++slot.count;
          ++slot.open_units;
          return true;
        }
        slot.exhausted = true;
        newest_ = -1;
        paused_ = !slot.tile.keys.blocks || slot.count > kFewUnits;
        if (slot.open_units == 0) end_tile(slot);
      }
      if (paused_) return false;
      // Up to three tiles have units in the pipeline; there is a slot for one more.
      int free = 0;
      while (slots_[free].in_use) ++free;
      if (!source_.next(free, slots_[free].tile)) return false;
      start_tile(free);
    }
  }

  void start_tile(int index) {
    Slot& slot = slots_[index];
    slot.scratch = MatrixForwardScratch::carve<S>(slot.tile.blocking, base_, index);
    slot.panels.set(slot.tile);
    slot.units.start(slot.tile, slot.panels, MatrixUnit::kMostStrips);
    slot.count = 0;
    slot.in_use = true;
    slot.begun = slot.exhausted = false;
    newest_ = index;
  }

  void begin_tile(Slot& slot) {
    if (!slot.begun) begin_matrix_tile(slot.tile, slot.scratch, slot.panels);
    slot.begun = true;
  }

  void end_tile(Slot& slot) {
    begin_tile(slot);
    const std::int64_t depth_v = StripLayout(slot.tile.blocking).depth_v;
    for (const Panel& panel : slot.panels) {
      finish_panel<S>(slot.tile, panel, slot.scratch.o_t + panel.lane0 * depth_v,
                      slot.scratch.m + panel.lane0, slot.scratch.l + panel.lane0);
    }
    slot.in_use = false;
  }

  /// A unit's output is in O.
  void end_unit(const MatrixUnit& unit) {
    Slot& slot = slots_[unit.slot];
    if (--slot.open_units == 0 && slot.exhausted) end_tile(slot);
  }

  void prepare_scores(const MatrixUnit& unit, int turn) {
    Slot& slot = slots_[unit.slot];
    begin_tile(slot);
    background_.scores = scores_of<S>(slot.tile, slot.scratch, unit, slot.scratch.s[turn % 2]);
  }

  void ask_for_values(const MatrixUnit& unit) {
    add_coming_values(slots_[unit.slot].tile, unit, background_.ahead);
  }

  void ask_for_keys(const MatrixUnit& unit) {
    const Slot& slot = slots_[unit.slot];
    if (!slot.begun) {
      constexpr auto kSize = static_cast<std::int64_t>(sizeof(bf16));
      const ForwardTile& tile = slot.tile;
      background_.ahead.add(tile.q.data, tile.blocking.head_dim * kSize, tile.q.stride * kSize,
                            tile.rows);
    }
    add_coming_keys(slot.tile, unit, background_.ahead);
  }

  const TileSource& source_;
  float* base_;
  Slot slots_[TileSource::kSlots];
  int newest_ = -1;      ///< The slot that units are handed out of.
  bool paused_ = false;  ///< The pipeline is to end before the next tile.
  Background<S> background_;
};

template <class S>
void matrix_forward(const TileSource& source, float* base) {
  MatrixForward<S>(source, base).run();
}

}  // namespace tessera::cpu
