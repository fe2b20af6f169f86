// From raw products of bf16 to the weights of the next ones: the steps of a unit on the vector
// units, beside which products go on.
#pragma once

#include "cpu/kernel/matrix_units.hpp"

namespace tessera::cpu {

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

/// Weights may grow to 2 to this before a row's maximum is renewed: bf16 has f32's range, and the
/// sum's rounding is relative. So O is rescaled for a few blocks of keys only, not for all those in
/// which one of a panel's rows finds a slightly larger score.
inline constexpr float kLargestExponent = 8;

/// What the exponents of each row are relative to, negated: m, or 0 while nothing has been seen.
template <class S, int C>
TESSERA_INLINE void load_bases(const float* m, typename S::V (&base)[C]) {
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    const typename S::V at = S::load(m + c * S::kLanes);
    const typename S::M nothing = S::equal(at, S::set(kMinusInfinity));
    base[c] = S::select(nothing, S::zero(), S::sub(S::zero(), at));
  }
}

/// The maximum of the scores f · s of n keys joins m; l and what α multiplies follow.
template <class S, int C>
void renew_maxima(const float* s, std::int64_t n, float factor, float* m, float* l, float* alpha) {
  using V = typename S::V;
  V highest[C];
  TESSERA_UNROLL for (int c = 0; c < C; ++c) highest[c] = S::set(kMinusInfinity);
  for (std::int64_t j = 0; j < n; ++j) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      highest[c] = S::max(highest[c], S::load(s + (j * C + c) * S::kLanes));
    }
  }
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    // Scores that overflowed f32 saturate; a row that has seen nothing keeps −inf and subtracts 0.
    const V m_old = S::load(m + c * S::kLanes);
    const V m_new = S::min(S::set(kLargest), S::max(m_old, S::mul(S::set(factor), highest[c])));
    const V finite = S::select(S::equal(m_new, S::set(kMinusInfinity)), S::zero(), m_new);
    // O and l of a row that has seen nothing are 0: with α = 1 O need not be gone through.
    const V a = S::select(S::equal(m_old, S::set(kMinusInfinity)), S::set(1.0f),
                          exp2<S>(S::sub(m_old, finite)));
    S::store(alpha + c * S::kLanes, a);
    S::store(m + c * S::kLanes, m_new);
    S::store(l + c * S::kLanes, S::mul(a, S::load(l + c * S::kLanes)));
  }
}

/// What goes on while the vector units make weights: the products of the units before and after,
/// and reading ahead. Scores may be products of another kind of tiles.
template <class S, class Scores = S>
struct Background {
  ProductSeries<Scores> scores;
  ProductSeries<S> values;
  ReadAhead ahead;

  TESSERA_INLINE std::int64_t steps() const { return scores.steps() + values.steps(); }
  TESSERA_INLINE std::int64_t lines() const { return ahead.lines; }
  TESSERA_INLINE void step() {
    if (!scores.done()) {
      scores.step();
    } else if (!values.done()) {
      values.step();
    }
  }
  TESSERA_INLINE void ask() { ahead.ask(); }
  TESSERA_INLINE void finish() {
    scores.finish();
    values.finish();
  }
};

/// P = 2^(f · s − m) of n keys, an even number: to `p` in pairs of keys, or with `keep` into s. The
/// background advances meanwhile. Returns whether no weight exceeds the largest exponent; unless
/// the maxima have been `renewed`, the sums join l only then, and without that the weights are of
/// no use.
template <class S, int C>
TESSERA_INLINE bool make_weights(float* s, std::int64_t n, float factor, const float* m, float* l,
                                 bool renewed, bool keep, bf16* p, Background<S>& background) {
  using V = typename S::V;
  constexpr std::int64_t kLanes = C * S::kLanes;
  const V f = S::set(factor);
  const V largest = S::set(kLargestExponent);
  V base[C], sum[C], highest[C];
  load_bases<S, C>(m, base);
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    sum[c] = S::load(l + c * S::kLanes);
    highest[c] = S::set(kMinusInfinity);
  }
  const std::int64_t steps = background.steps();
  const std::int64_t lines = background.lines();
  std::int64_t steps_due = 0;
  std::int64_t lines_due = 0;
  for (std::int64_t j = 0; j < n; j += 2) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      float* at = s + j * kLanes + c * S::kLanes;
      const V x = S::fma(f, S::load(at), base[c]);
      const V y = S::fma(f, S::load(at + kLanes), base[c]);
      highest[c] = S::max(highest[c], S::max(x, y));
      const V even = exp2<S>(S::min(largest, x));
      const V odd = exp2<S>(S::min(largest, y));
      sum[c] = S::add(sum[c], S::add(even, odd));
      if (keep) {
        S::store(at, even);
        S::store(at + kLanes, odd);
      } else {
        S::store(reinterpret_cast<float*>(p + j * kLanes + 2 * c * S::kLanes), S::pairs(even, odd));
      }
    }
    for (steps_due += 2 * steps; steps_due >= n; steps_due -= n) background.step();
    for (lines_due += 2 * lines; lines_due >= n; lines_due -= n) background.ask();
  }
  bool small = true;
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    // A row that has seen nothing must get a maximum, whatever its first scores are.
    const typename S::V seen =
        S::select(S::equal(S::load(m + c * S::kLanes), S::set(kMinusInfinity)),
                  S::set(kMinusInfinity), largest);
    small = small && !S::any(S::less(seen, highest[c]));
  }
  if (small || renewed) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) S::store(l + c * S::kLanes, sum[c]);
  }
  return small;
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

}  // namespace tessera::cpu
