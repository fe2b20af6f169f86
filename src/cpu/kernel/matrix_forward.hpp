// Forward on matrix tiles: one tile of query rows of one head against all keys it may see.
//
//   for each block of keys, in strips of 32                 packed K and Vᵀ, L2
//     for each panel of up to 4 vectors of queries          S and P of a block, L1 and L2
//       S[key][query]  = K · Qᵀ                             bf16 tiles, f32 sums
//       masks, m, P = exp2(f S − m), l                      the vector kernels' steps, f32
//       O[d][query]    = O · α + Vᵀ · P                     P rounded to bf16, f32 sums
//   O / l, transposed back into the caller's rows
//
// Q is not scaled on the way in, that would round it: the factor scale · log₂e joins the
// subtraction of the maximum. Blocks begin and end at whole strips; the keys of a strip that the
// panel does not see have the score −inf, and packed zeros where nobody sees them.
#pragma once

#include "cpu/kernel/forward.hpp"
#include "cpu/kernel/matrix_pack.hpp"

namespace tessera::cpu {

struct MatrixForwardScratch {
  bf16* q;       ///< Per panel [depth / 2][lanes][2].
  float* o_t;    ///< Per panel [depth_v][lanes].
  float* m;      ///< [tile_q] running maximum, base 2.
  float* l;      ///< [tile_q] running sum.
  float* alpha;  ///< [one panel] what the last step multiplies O and l by.
  float* s;      ///< [block_kv][one panel] scores; with dropout then P.
  bf16* p;       ///< [block_kv / 2][one panel][2]
  float* bias;   ///< [block_kv][one panel]
  std::int64_t floats;

  template <class S>
  static MatrixForwardScratch carve(const Blocking& b, float* base) {
    constexpr std::int64_t kPanel = S::kTileVectors * S::kLanes;
    const StripLayout layout(b);
    Carver carver(base);
    MatrixForwardScratch x;
    x.q = reinterpret_cast<bf16*>(carver.floats(b.tile_q * layout.depth / 2));
    x.o_t = carver.floats(b.tile_q * layout.depth_v);
    x.m = carver.floats(b.tile_q);
    x.l = carver.floats(b.tile_q);
    x.alpha = carver.floats(kPanel);
    x.s = carver.floats(b.block_kv * kPanel);
    x.p = reinterpret_cast<bf16*>(carver.floats(b.block_kv * kPanel / 2));
    x.bias = carver.floats(b.block_kv * kPanel);
    x.floats = carver.used();
    return x;
  }
};

/// The strips of a block of keys that a panel works on, and the keys [j0, j0 + n) it sees of them.
struct PanelStrips {
  std::int64_t j0 = 0;
  std::int64_t n = 0;
  std::int64_t first = 0;  ///< Strip of the sequence.
  std::int64_t count = 0;

  TESSERA_INLINE PanelStrips(const Panel& panel, std::int64_t begin, std::int64_t end) {
    j0 = begin > panel.begin ? begin : panel.begin;
    n = (end < panel.end ? end : panel.end) - j0;
    if (n <= 0) return;
    first = j0 / kStrip;
    count = (j0 + n + kStrip - 1) / kStrip - first;
  }
  TESSERA_INLINE std::int64_t keys() const { return count * kStrip; }
  /// Row of the strips' scores that j0 has.
  TESSERA_INLINE std::int64_t offset() const { return j0 - first * kStrip; }
};

/// s = value in all rows of the strips that hold no key of [j0, j0 + n).
template <class S>
TESSERA_INLINE void fill_unseen(const PanelStrips& strips, std::int64_t lanes, float value,
                                float* s) {
  const typename S::V v = S::set(value);
  for (std::int64_t i = 0; i < strips.offset() * lanes; i += S::kLanes) S::store(s + i, v);
  for (std::int64_t i = (strips.offset() + strips.n) * lanes; i < strips.keys() * lanes;
       i += S::kLanes) {
    S::store(s + i, v);
  }
}

/// Applies the score rules to raw products of the strips and returns what is left to multiply them
/// by. Only masks can be applied before the factor is: −inf stays what it is.
template <class S, int C>
float finish_products(const ScoreContext& context, const KeySegment& segment,
                      const PanelStrips& strips, float factor, float* s) {
  const ScoreRules& rules = *context.rules;
  float* seen = s + strips.offset() * C * S::kLanes;
  if (rules.softcap > 0 || rules.has_bias || rules.alibi || !(factor > 0)) {
    const typename S::V f = S::set(factor);
    for (std::int64_t i = 0; i < context.n * C * S::kLanes; i += S::kLanes) {
      S::store(seen + i, S::mul(f, S::load(seen + i)));
    }
    factor = 1;
  }
  finish_scores<S, C>(context, segment, seen);
  fill_unseen<S>(strips, C * S::kLanes, kMinusInfinity, s);
  return factor;
}

/// One online-softmax step over the scores f · s of n keys, a multiple of 32: P goes to `p` in
/// pairs of keys, or with `keep` stays in s.
template <class S, int C>
void matrix_softmax_step(float* s, std::int64_t n, float factor, float* m, float* l, float* alpha,
                         bool keep, bf16* p) {
  using V = typename S::V;
  constexpr std::int64_t kLanes = C * S::kLanes;
  const V largest = S::set(kLargest);
  const V f = S::set(factor);
  V highest[C], base[C], sum[C];
  TESSERA_UNROLL for (int c = 0; c < C; ++c) highest[c] = S::set(kMinusInfinity);
  for (std::int64_t j = 0; j < n; ++j) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      highest[c] = S::max(highest[c], S::load(s + j * kLanes + c * S::kLanes));
    }
  }
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    // Scores that overflowed f32 saturate; a row that has seen nothing keeps −inf and subtracts 0.
    const V m_old = S::load(m + c * S::kLanes);
    const V m_new = S::min(largest, S::max(m_old, S::mul(f, highest[c])));
    base[c] = S::select(S::equal(m_new, S::set(kMinusInfinity)), S::zero(), m_new);
    const V a = exp2<S>(S::sub(m_old, base[c]));
    S::store(alpha + c * S::kLanes, a);
    S::store(m + c * S::kLanes, m_new);
    sum[c] = S::mul(a, S::load(l + c * S::kLanes));
    base[c] = S::sub(S::zero(), base[c]);
  }
  for (std::int64_t j = 0; j < n; j += 2) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      float* at = s + j * kLanes + c * S::kLanes;
      // At most 0 but for rounding, and for scores that overflowed.
      const V even = exp2<S>(S::min(S::zero(), S::fma(f, S::load(at), base[c])));
      const V odd = exp2<S>(S::min(S::zero(), S::fma(f, S::load(at + kLanes), base[c])));
      sum[c] = S::add(sum[c], S::add(even, odd));
      if (keep) {
        S::store(at, even);
        S::store(at + kLanes, odd);
      } else {
        S::store(reinterpret_cast<float*>(p + j * kLanes + 2 * c * S::kLanes), S::pairs(even, odd));
      }
    }
  }
  TESSERA_UNROLL for (int c = 0; c < C; ++c) S::store(l + c * S::kLanes, sum[c]);
}

/// p[j / 2][lane][j % 2] = s[j][lane] in bf16, for n rows, an even number.
template <class S>
void store_key_pairs(const float* s, std::int64_t n, std::int64_t lanes, bf16* p) {
  for (std::int64_t j = 0; j < n; j += 2) {
    for (std::int64_t i = 0; i < lanes; i += S::kLanes) {
      const float* at = s + j * lanes + i;
      S::store(reinterpret_cast<float*>(p + j * lanes + 2 * i),
               S::pairs(S::load(at), S::load(at + lanes)));
    }
  }
}

/// o_t[d][lane] *= α[lane], unless every α is 1.
template <class S, int C>
void rescale_output(const float* alpha, std::int64_t depth_v, float* o_t) {
  typename S::V a[C];
  bool same = true;
  for (int i = 0; i < C * S::kLanes; ++i) same = same && alpha[i] == 1.0f;
  if (same) return;
  TESSERA_UNROLL for (int c = 0; c < C; ++c) a[c] = S::load(alpha + c * S::kLanes);
  for (std::int64_t d = 0; d < depth_v; ++d) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      float* at = o_t + (d * C + c) * S::kLanes;
      S::store(at, S::mul(a[c], S::load(at)));
    }
  }
}

template <class S, int C>
void matrix_forward_panel(const ForwardTile& tile, const MatrixForwardScratch& scratch,
                          const Panel& panel, const KeySegment& segment,
                          const PanelStrips& strips) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  const StripLayout layout(tile.blocking);
  const bf16* packed = tile.strips + strips.first * tile.strip_elements;
  float* s = scratch.s;
  const MatrixB q = {scratch.q + panel.lane0 * layout.depth, kLanes};
  for (std::int64_t i = 0; i < strips.count; ++i) {
    multiply_strip<S>({packed + i * tile.strip_elements, layout.depth}, q, layout.depth, kLanes,
                      s + i * kStrip * kLanes, kLanes);
  }
  const ScoreContext context = {&tile.rules,
                                tile.key_begin + panel.lane0,
                                tile.key_end + panel.lane0,
                                panel,
                                strips.j0,
                                strips.n,
                                scratch.bias,
                                nullptr};
  const float factor =
      finish_products<S, C>(context, segment, strips, __builtin_fabsf(tile.rules.q_scale), s);
  matrix_softmax_step<S, C>(s, strips.keys(), factor, scratch.m + panel.lane0,
                            scratch.l + panel.lane0, scratch.alpha, tile.rules.dropout, scratch.p);
  if (tile.rules.dropout) {
    apply_dropout<S, C>(context, s + strips.offset() * kLanes);
    store_key_pairs<S>(s, strips.keys(), kLanes, scratch.p);
  }
  float* o_t = scratch.o_t + panel.lane0 * layout.depth_v;
  rescale_output<S, C>(scratch.alpha, layout.depth_v, o_t);
  for (std::int64_t d = 0; d < layout.depth_v; d += kStrip) {
    multiply_add_strip<S>({packed + layout.v() + d * kStrip, kStrip, tile.strip_elements},
                          {scratch.p, kLanes}, strips.keys(), kLanes, o_t + d * kLanes, kLanes);
  }
}

template <class S>
void matrix_forward_tile(const ForwardTile& tile, float* base) {
  const StripLayout layout(tile.blocking);
  const MatrixForwardScratch scratch = MatrixForwardScratch::carve<S>(tile.blocking, base);
  const Panels<S> panels(tile);
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

  S::configure_tiles();
  KeyWalk walk = tile.keys;
  KeySegment segment;
  while (next_segment(walk, segment)) {
    const std::int64_t step = tile.blocking.block_kv;
    for (std::int64_t block = segment.begin / kStrip * kStrip; block < segment.end; block += step) {
      const std::int64_t begin = block > segment.begin ? block : segment.begin;
      const std::int64_t end = block + step < segment.end ? block + step : segment.end;
      for (const Panel& panel : panels) {
        const PanelStrips strips(panel, begin, end);
        if (strips.n <= 0) continue;
        with_vectors<S>(panel.vectors, [&]<int C>() {
          matrix_forward_panel<S, C>(tile, scratch, panel, segment, strips);
        });
      }
    }
  }
  S::release_tiles();

  for (const Panel& panel : panels) {
    finish_panel<S>(tile, panel, scratch.o_t + panel.lane0 * layout.depth_v,
                    scratch.m + panel.lane0, scratch.l + panel.lane0);
  }
}

}  // namespace tessera::cpu
