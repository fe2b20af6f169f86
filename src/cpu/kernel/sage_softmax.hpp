// From integer sums to rounded weights, shared by the quantised kernels on vectors and on tiles.
//
// A panel's products are s[key][lane] as integers; the score in base 2 is
//
//   t = integer · (scale of the lane · scale of the key) + shift of the key
//
// in one multiply-add, together with the subtraction of what weights are relative to. That is
// m = ⌈max t⌉ − 8, an integer, so that weights of E4M3's normal range are the same numbers whatever
// m was when they were made, and rescaling is exact. Panels that rules or masks apply to get their
// scores as f32 first.
#pragma once

#include "cpu/kernel/forward.hpp"
#include "cpu/kernel/sage_quantise.hpp"

namespace tessera::cpu {

/// The largest weight of a row is 2 to this when its maximum has just been renewed.
inline constexpr float kWeightExponent = 8;
inline constexpr float kLargestWeight = 256;

/// What the rows of a tile have, [tile_q] each.
struct SageRows {
  float* factor;     ///< What integers are multiplied by, besides the key's scale.
  float* m;          ///< What weights are relative to, base 2.
  float* l;          ///< Sum of the rounded weights.
  float* exact;      ///< Sum of the weights before rounding, if the LSE is wanted.
  float* applied;    ///< With dropout, sum of the weights that are kept.
  float* taken;      ///< q · k̄, which smoothing K took from every product.
  float* cap_shift;  ///< What of it joins the scores before the softcap.

  TESSERA_INLINE static SageRows carve(Carver& carver, std::int64_t rows) {
    SageRows x;
    x.factor = carver.floats(rows);
    x.m = carver.floats(rows);
    x.l = carver.floats(rows);
    x.exact = carver.floats(rows);
    x.applied = carver.floats(rows);
    x.taken = carver.floats(rows);
    x.cap_shift = carver.floats(rows);
    return x;
  }
  TESSERA_INLINE SageRows from(std::int64_t row) const {
    return {factor + row,  m + row,     l + row,        exact + row,
            applied + row, taken + row, cap_shift + row};
  }
};

/// Products of a panel with n keys, and the keys' factors.
struct SageScores {
  float* s = nullptr;  ///< Integers, or f32 once rules or masks have been applied.
  std::int64_t n = 0;
  const float* key_scale = nullptr;
  const float* key_shift = nullptr;
};

/// paired_integers: keys 2j and 2j + 1 share a scale.
enum class ScoreForm : std::uint8_t { integers, paired_integers, shifted_integers, floats };

/// Reads scores with `base` added.
template <class S, int C, ScoreForm kForm>
struct ScoreReader {
  using V = typename S::V;
  const float* s;
  const float* key_scale;
  const float* key_shift;
  V factor[C];

  TESSERA_INLINE ScoreReader(const SageScores& scores, const SageRows& rows)
      : s(scores.s), key_scale(scores.key_scale), key_shift(scores.key_shift) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) factor[c] = S::load(rows.factor + c * S::kLanes);
  }
  /// Of key j and kStep − 1 more, vector c.
  template <int kStep>
  TESSERA_INLINE void read(std::int64_t j, int c, V base, V (&x)[kStep]) const {
    const float* from = s + (j * C + c) * S::kLanes;
    V scale = S::mul(factor[c], S::set(key_scale[j]));
    TESSERA_UNROLL for (int u = 0; u < kStep; ++u) {
      const V here = S::load(from + u * C * S::kLanes);
      if constexpr (kForm == ScoreForm::floats) {
        x[u] = S::add(here, base);
        continue;
      }
      if (u > 0 && kForm != ScoreForm::paired_integers) {
        scale = S::mul(factor[c], S::set(key_scale[j + u]));
      }
      V shift = base;
      if constexpr (kForm == ScoreForm::shifted_integers) {
        shift = S::add(base, S::set(key_shift[j + u]));
      }
      x[u] = S::fma(S::to_float(S::as_int(here)), scale, shift);
    }
  }
};

/// Integers to f32 scores, in place, with what the softcap acts on.
template <class S, int C>
void dequantise(const SageScores& scores, const SageRows& rows) {
  const auto convert = [&](const auto& reader) {
    typename S::V shift[C];
    TESSERA_UNROLL for (int c = 0; c < C; ++c) shift[c] = S::load(rows.cap_shift + c * S::kLanes);
    for (std::int64_t j = 0; j < scores.n; ++j) {
      TESSERA_UNROLL for (int c = 0; c < C; ++c) {
        typename S::V x[1];
        reader.template read<1>(j, c, shift[c], x);
        S::store(scores.s + (j * C + c) * S::kLanes, x[0]);
      }
    }
  };
  if (scores.key_shift != nullptr) {
    convert(ScoreReader<S, C, ScoreForm::shifted_integers>(scores, rows));
  } else {
    convert(ScoreReader<S, C, ScoreForm::integers>(scores, rows));
  }
}

template <class S>
TESSERA_INLINE void rescale(const float* alpha, float* x) {
  S::store(x, S::mul(S::load(alpha), S::load(x)));
}

/// The maxima of the scores, which are f32, join m; the rows' sums and what α multiplies follow.
template <class S, int C>
void renew_sage_maxima(const SageScores& scores, const SageRows& rows, float* alpha) {
  using V = typename S::V;
  V highest[C];
  TESSERA_UNROLL for (int c = 0; c < C; ++c) highest[c] = S::set(kMinusInfinity);
  for (std::int64_t j = 0; j < scores.n; ++j) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      highest[c] = S::max(highest[c], S::load(scores.s + (j * C + c) * S::kLanes));
    }
  }
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    const std::int64_t at = c * S::kLanes;
    // Scores that overflowed f32 saturate; a row that has seen nothing keeps −inf.
    const V rounded_up = S::ceil(S::min(S::set(kLargest), highest[c]));
    const V m_old = S::load(rows.m + at);
    const V m_new = S::max(m_old, S::sub(rounded_up, S::set(kWeightExponent)));
    const V finite = S::select(S::equal(m_new, S::set(kMinusInfinity)), S::zero(), m_new);
    // Sums of a row that has seen nothing are 0: with α = 1 O need not be gone through.
    S::store(alpha + at, S::select(S::equal(m_old, S::set(kMinusInfinity)), S::set(1.0f),
                                   exp2<S>(S::sub(m_old, finite))));
    S::store(rows.m + at, m_new);
    rescale<S>(alpha + at, rows.l + at);
    rescale<S>(alpha + at, rows.exact + at);
    rescale<S>(alpha + at, rows.applied + at);
  }
}

/// 2^x as a significand in [1, 2] and a power of two. The significand comes rounded, and with kLse
/// also as it is. Its polynomial of degree 5 is off by 2^−23.5 at most, as much as f32's rounding.
template <class S>
struct WeightRounding {
  using V = typename S::V;
  V one_plus, magic, denormal;

  TESSERA_INLINE explicit WeightRounding(const WeightFormat& format)
      : one_plus(S::set(1.0f + format.significand)),
        magic(S::set(format.significand)),
        denormal(S::set(format.denormal)) {}

  template <bool kLse>
  TESSERA_INLINE V round(V x, V& exact) const {
    if constexpr (S::kSplitsAtFloor) {
      return finish<kLse>(S::fraction(x), exact,
                          [x](V significand) { return S::scale_by_floor(significand, x); });
    } else {
      const V clamped = S::min(S::set(127.0f), S::max(S::set(kExp2Floor), x));
      const V n = S::floor(clamped);
      return finish<kLse>(S::sub(clamped, n), exact,
                          [n](V significand) { return S::scale_by_power(significand, n); });
    }
  }

 private:
  template <bool kLse, class Scale>
  TESSERA_INLINE V finish(V f, V& exact, Scale&& scale) const {
    V p = S::set(1.86713008e-3f);
    p = S::fma(p, f, S::set(9.01703028e-3f));
    p = S::fma(p, f, S::set(5.57999131e-2f));
    p = S::fma(p, f, S::set(0.240164450f));
    p = S::fma(p, f, S::set(0.693151312f));
    if constexpr (kLse) exact = S::add(exact, scale(S::fma(p, f, S::set(1.0f))));
    // Rounded by the multiply-add itself.
    const V weight = scale(S::sub(S::fma(p, f, one_plus), magic));
    return S::sub(S::add(weight, denormal), denormal);
  }
};

/// Rounded weights of n keys, kStep of them at a time, to `store(key, vector, weights)`, with
/// `meanwhile()` in between. Unless the maxima have been renewed with these scores, the sums join
/// the rows' only if no weight can be larger than n · 256; else it returns false, and the weights
/// are of no use. Every row must have a maximum then.
template <class S, int C, ScoreForm kForm, bool kRenewed, bool kLse, int kStep, class Store,
          class Meanwhile>
TESSERA_INLINE bool make_sage_weights(const SageScores& scores, const SageRows& rows,
                                      const WeightFormat& format, Store store,
                                      Meanwhile&& meanwhile) {
  using V = typename S::V;
  const ScoreReader<S, C, kForm> reader(scores, rows);
  const WeightRounding<S> rounding(format);
  V base[C], sum[C], exact[C];
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    const V m = S::load(rows.m + c * S::kLanes);
    base[c] = S::select(S::equal(m, S::set(kMinusInfinity)), S::zero(), S::sub(S::zero(), m));
    sum[c] = S::zero();
    exact[c] = S::load(rows.exact + c * S::kLanes);
  }
  const std::int64_t n = scores.n;
  for (std::int64_t j = 0; j < n; j += kStep) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      V weight[kStep];
      reader.template read<kStep>(j, c, base[c], weight);
      TESSERA_UNROLL for (int u = 0; u < kStep; ++u) {
        V& x = weight[u];
        if constexpr (kRenewed) x = S::min(S::set(kWeightExponent), x);
        x = rounding.template round<kLse>(x, exact[c]);
        sum[c] = S::add(sum[c], x);
      }
      store(j, c, weight);
    }
    meanwhile();
  }
  if constexpr (!kRenewed) {
    const V largest = S::set(static_cast<float>(n) * kLargestWeight);
    bool small = true;
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      small = small && !S::any(S::less(largest, sum[c])) && !S::any(S::unordered(sum[c]));
    }
    if (!small) return false;
  }
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    float* l = rows.l + c * S::kLanes;
    S::store(l, S::add(S::load(l), sum[c]));
    if constexpr (kLse) S::store(rows.exact + c * S::kLanes, exact[c]);
  }
  return true;
}

/// Whether every row of a panel has a maximum.
template <class S, int C>
TESSERA_INLINE bool have_maxima(const SageRows& rows) {
  bool all = true;
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    all = all && !S::any(S::equal(S::load(rows.m + c * S::kLanes), S::set(kMinusInfinity)));
  }
  return all;
}

/// Calls f.operator()<form>() for the form in which a unit's scores are.
template <class F>
TESSERA_INLINE auto with_form(const SageScores& scores, bool integers, bool paired, F&& f) {
  if (!integers) return f.template operator()<ScoreForm::floats>();
  if (scores.key_shift != nullptr) return f.template operator()<ScoreForm::shifted_integers>();
  if (paired) return f.template operator()<ScoreForm::paired_integers>();
  return f.template operator()<ScoreForm::integers>();
}

/// Whether scores can stay integers until they become weights.
TESSERA_INLINE bool stay_integers(const ScoreRules& rules, const KeySegment& segment,
                                  const Panel& panel, std::int64_t j0, std::int64_t n) {
  const bool plain = !(rules.softcap > 0) && !rules.has_bias && !rules.alibi && !rules.has_mask;
  return plain && segment.bits == nullptr && j0 >= panel.all_begin && j0 + n <= panel.all_end;
}

/// Σ_d a[d] · b[d] of kLanes pairs of rows at a time: one vector of sums from one each.
template <class S>
TESSERA_INLINE typename S::V sums_of_rows(typename S::V (&rows)[S::kLanes]) {
  S::transpose(rows);
  typename S::V sum = rows[0];
  for (int r = 1; r < S::kLanes; ++r) sum = S::add(sum, rows[r]);
  return sum;
}

/// shift[j] = factor · q̄ · (k_j − k̄) of `count` keys from key `from` on, in base-2 units.
template <class S>
void shifts_of_keys(const SageTile& tile, std::int64_t from, std::int64_t count, float* shift) {
  const std::int64_t columns = tile.blocking.head_dim;
  with_pointer(tile.k, [&](const auto* data) {
    for (std::int64_t j = 0; j < count; j += S::kLanes) {
      typename S::V rows[S::kLanes];
      for (int r = 0; r < S::kLanes; ++r) {
        rows[r] = S::zero();
        for (std::int64_t c = 0; j + r < count && c < columns; c += S::kLanes) {
          typename S::V x = load_up_to<S>(data + (from + j + r) * tile.k.stride + c, columns - c);
          if (tile.k_mean != nullptr) x = S::sub(x, S::load(tile.k_mean + c));
          rows[r] = S::fma(S::load(tile.q_mean + c), x, rows[r]);
        }
      }
      S::store(shift + j, S::mul(S::set(tile.rules.q_scale), sums_of_rows<S>(rows)));
    }
  });
}

/// taken = q · k̄ of the tile's rows, where anything needs it.
template <class S>
void take_means(const SageTile& tile, const SageRows& rows) {
  const std::int64_t columns = tile.blocking.head_dim;
  const bool capped = tile.rules.softcap > 0;
  const bool wanted = tile.k_mean != nullptr && (capped || tile.lse != nullptr || tile.has_sink);
  with_pointer(tile.q, [&](const auto* data) {
    for (std::int64_t i = 0; i < tile.rows; i += S::kLanes) {
      typename S::V products[S::kLanes];
      for (int r = 0; r < S::kLanes; ++r) {
        products[r] = S::zero();
        for (std::int64_t c = 0; wanted && i + r < tile.rows && c < columns; c += S::kLanes) {
          const typename S::V q = load_up_to<S>(data + (i + r) * tile.q.stride + c, columns - c);
          products[r] = S::fma(q, S::load(tile.k_mean + c), products[r]);
        }
      }
      const typename S::V taken = sums_of_rows<S>(products);
      const typename S::V capped_part = S::mul(S::set(tile.rules.q_scale), taken);
      S::store(rows.taken + i, taken);
      S::store(rows.cap_shift + i, capped ? capped_part : S::zero());
    }
  });
}

/// The integers of Q as panels [word][lane], O and the rows' numbers at their start.
template <class S>
void begin_sage_tile(const SageTile& tile, const Panels<S>& panels, std::int64_t depth_v,
                     std::int32_t* q_t, float* o_t, const SageRows& rows) {
  const typename S::U offset = S::set_word(S::kQueryOffset);
  for (const Panel& panel : panels) {
    std::int32_t* to = q_t + panel.lane0 * tile.words;
    for (std::int64_t lane0 = 0; lane0 < panel.lanes; lane0 += S::kLanes) {
      for (std::int64_t w = 0; w < tile.words; w += S::kLanes) {
        typename S::V block[S::kLanes];
        for (int r = 0; r < S::kLanes; ++r) {
          const std::int32_t* row = tile.q_words + (panel.lane0 + lane0 + r) * tile.words + w;
          block[r] =
              lane0 + r < panel.rows ? S::load(reinterpret_cast<const float*>(row)) : S::zero();
        }
        S::transpose(block);
        for (int r = 0; r < S::kLanes; ++r) {
          const typename S::U word = S::xor_word((typename S::U)S::as_int(block[r]), offset);
          S::store(reinterpret_cast<float*>(to + (w + r) * panel.lanes + lane0),
                   S::as_float((typename S::I)word));
        }
      }
    }
    for (std::int64_t i = 0; i < panel.lanes * depth_v; i += S::kLanes) {
      S::store(o_t + panel.lane0 * depth_v + i, S::zero());
    }
    const SageRows here = rows.from(panel.lane0);
    for (std::int64_t i = 0; i < panel.lanes; ++i) {
      here.factor[i] = i < panel.rows ? tile.q_scale[panel.lane0 + i] * tile.rules.q_scale : 0.0f;
      here.m[i] = kMinusInfinity;
      here.l[i] = here.exact[i] = here.applied[i] = 0;
    }
  }
  take_means<S>(tile, rows);
}

/// What a row's sums are to be multiplied by, with its sink; stores its LSE.
TESSERA_INLINE float sage_output_factor(const SageTile& tile, const SageRows& rows,
                                        std::int64_t row, std::int64_t lane) {
  constexpr double kLn2Wide = 0.693147180559945309417;
  const double taken =
      tile.rules.softcap > 0 ? 0.0 : static_cast<double>(tile.scale) * rows.taken[lane];
  double sum = rows.l[lane];
  double exact = rows.exact[lane];
  double base = rows.m[lane];
  double scale = 1;
  const bool empty = rows.l[lane] == 0;
  if (tile.has_sink && empty) {
    base = tile.sink;
    sum = exact = 1;
    scale = 0;
  } else if (tile.has_sink) {
    const double sink = tile.sink - taken / kLn2Wide;
    const double highest = sink > base ? sink : base;
    scale = __builtin_exp2(base - highest);
    const double weight = __builtin_exp2(sink - highest);
    sum = sum * scale + weight;
    exact = exact * scale + weight;
    base = highest;
  }
  if (tile.lse != nullptr) {
    const double lse = empty && !tile.has_sink
                           ? static_cast<double>(kMinusInfinity)
                           : (base + __builtin_log2(exact)) * kLn2Wide + (empty ? 0.0 : taken);
    tile.lse[row * tile.lse_stride] = static_cast<float>(lse);
  }
  return empty ? 0.0f : static_cast<float>(scale / sum);
}

/// O = s_v O / l + v̄ Σ kept weights / l, transposed back into the caller's rows; and the LSE.
template <class S>
void finish_sage_panel(const SageTile& tile, const Panel& panel, const SageRows& rows, float* o_t) {
  using V = typename S::V;
  const bool dropout = tile.rules.dropout;
  float factor[S::kTileVectors * S::kLanes] = {};
  for (std::int64_t i = 0; i < panel.rows; ++i) {
    factor[i] = sage_output_factor(tile, rows, panel.lane0 + i, i);
  }
  for (std::int64_t lane = 0; lane < panel.lanes; lane += S::kLanes) {
    const V f = S::mul(S::set(tile.keep_scale), S::load(factor + lane));
    const V kept = S::mul(f, S::load((dropout ? rows.applied : rows.l) + lane));
    const typename S::M empty = S::equal(S::load(rows.l + lane), S::zero());
    for (std::int64_t d = 0; d < tile.blocking.head_dim_v; ++d) {
      float* at = o_t + d * panel.lanes + lane;
      V o = S::mul(f, S::load(at));
      if (tile.v_scale != nullptr) o = S::mul(o, S::set(tile.v_scale[d]));
      if (tile.v_mean != nullptr) o = S::fma(kept, S::set(tile.v_mean[d]), o);
      S::store(at, S::select(empty, S::zero(), o));
    }
  }
  for (float& f : factor) f = 1;
  OutputRows out = tile.o;
  with_pointer(tile.o, [&](auto* data) { out.data = data + panel.lane0 * tile.o.stride; });
  store_transposed<S>(o_t, panel.lanes, factor, panel.rows, tile.blocking.head_dim_v, out);
}

/// Kept weights join the rows' sums, after dropout.
template <class S, int C>
void add_applied(const float* p, std::int64_t n, const SageRows& rows) {
  TESSERA_UNROLL for (int c = 0; c < C; ++c) {
    typename S::V sum = S::load(rows.applied + c * S::kLanes);
    for (std::int64_t j = 0; j < n; ++j) sum = S::add(sum, S::load(p + (j * C + c) * S::kLanes));
    S::store(rows.applied + c * S::kLanes, sum);
  }
}

}  // namespace tessera::cpu
