// Statistics and quantisation of a block of tokens. The arithmetic is the scheme's
// (docs/quantised.md): each operation rounded on its own, so no multiply-add may be made of them.
#pragma once

#include "cpu/kernel/rows.hpp"
#include "cpu/kernel/sage.hpp"

namespace tessera::cpu {

TESSERA_INLINE bool takes_part(const TokenBlock& block, std::int64_t i) {
  return (block.used[i / 64] >> (i % 64) & 1u) != 0;
}

/// y rounded to E4M3, |y| ≤ 448. The adder rounds to nearest even at its sum's last bit: that of
/// 1.5 · 2²⁰ times the power of two below y is E4M3's, and so is that of the least one's for
/// denormals.
template <class S>
TESSERA_INLINE typename S::V round_to_e4m3(typename S::V y) {
  const typename S::V magic = S::set(0x1.8p20f);
  const typename S::V power = S::max(S::set(0x1p-6f), S::power_of_two(y));
  return S::fnma(power, magic, S::fma(power, magic, y));
}

/// Ordered sums and extremes of vector c of the channels: number i joins running sum i mod 8.
template <class S, bool kSums, bool kExtremes, class T>
void channel_statistics(const TokenBlock& block, const T* data, std::int64_t c,
                        const ChannelStatistics& out) {
  using V = typename S::V;
  V part[8];
  V low = S::set(__builtin_inff());
  V high = S::set(-__builtin_inff());
  typename S::U magnitude = S::set_word(0);
  TESSERA_UNROLL for (int u = 0; u < 8; ++u) part[u] = S::zero();
  for (std::int64_t i = 0; i < block.count; i += 8) {
    TESSERA_UNROLL for (int u = 0; u < 8; ++u) {
      if (!takes_part(block, i + u)) continue;
      const V x = load_up_to<S>(data + (i + u) * block.x.stride + c, block.columns - c);
      if constexpr (kSums) part[u] = S::add(part[u], x);
      if constexpr (kExtremes) {
        if constexpr (kSums) {
          low = S::min(low, x);
          high = S::max(high, x);
        }
        magnitude = S::max_word(magnitude, (typename S::U)S::as_int(S::abs(x)));
      }
    }
  }
  if constexpr (kSums) {
    TESSERA_UNROLL for (int half = 4; half > 0; half /= 2) {
      TESSERA_UNROLL for (int u = 0; u < half; ++u) part[u] = S::add(part[u], part[u + half]);
    }
    S::store(out.sum + c, part[0]);
  }
  if constexpr (kExtremes) {
    S::store(reinterpret_cast<float*>(out.magnitude + c), S::as_float((typename S::I)magnitude));
  }
  if constexpr (kSums && kExtremes) {
    S::store(out.low + c, low);
    S::store(out.high + c, high);
  }
}

template <class S>
void block_statistics(const TokenBlock& block, const ChannelStatistics& out) {
  with_pointer(block.x, [&](const auto* data) {
    for (std::int64_t c = 0; c < block.columns; c += S::kLanes) {
      if (out.magnitude == nullptr) {
        channel_statistics<S, true, false>(block, data, c, out);
      } else if (out.sum == nullptr) {
        channel_statistics<S, false, true>(block, data, c, out);
      } else {
        channel_statistics<S, true, true>(block, data, c, out);
      }
    }
  });
}

/// x − mean of one vector of a row.
template <class S, class T>
TESSERA_INLINE typename S::V smoothed(const TokenBlock& block, const T* row, std::int64_t c) {
  const typename S::V x = load_up_to<S>(row + c, block.columns - c);
  return block.mean == nullptr ? x : S::sub(x, S::load(block.mean + c));
}

template <class S>
void token_magnitudes(const TokenBlock& block, std::uint32_t* out) {
  using U = typename S::U;
  with_pointer(block.x, [&](const auto* data) {
    for (std::int64_t i = 0; i < block.count; i += S::kLanes) {
      typename S::V rows[S::kLanes];
      for (int r = 0; r < S::kLanes; ++r) {
        U largest = S::set_word(0);
        if (i + r < block.count && takes_part(block, i + r)) {
          const auto* row = data + (i + r) * block.x.stride;
          for (std::int64_t c = 0; c < block.columns; c += S::kLanes) {
            const typename S::V x = S::abs(smoothed<S>(block, row, c));
            largest = S::max_word(largest, (U)S::as_int(x));
          }
        }
        rows[r] = S::as_float((typename S::I)largest);
      }
      S::transpose(rows);
      U largest = (U)S::as_int(rows[0]);
      for (int r = 1; r < S::kLanes; ++r) largest = S::max_word(largest, (U)S::as_int(rows[r]));
      S::store(reinterpret_cast<float*>(out + i), S::as_float((typename S::I)largest));
    }
  });
}

template <class S>
TESSERA_INLINE std::int32_t sum_of_lanes(typename S::I x) {
  std::int32_t lanes[S::kLanes];
  S::store(reinterpret_cast<float*>(lanes), S::as_float(x));
  std::int32_t sum = 0;
  for (int i = 0; i < S::kLanes; ++i) sum += lanes[i];
  return sum;
}

template <class S>
void quantise_tokens(const TokenBlock& block, const float* inverse, std::int64_t words,
                     std::int32_t* out, std::int32_t* correction) {
  constexpr std::int64_t kStepWords = S::kLanes / S::kIntsPerWord;
  with_pointer(block.x, [&](const auto* data) {
    for (std::int64_t i = 0; i < block.count; ++i) {
      std::int32_t* to = out + i * words;
      typename S::I sum = S::set_int(0);
      const bool zero = inverse[i] == 0 || !takes_part(block, i);
      const typename S::V factor = S::set(inverse[i]);
      for (std::int64_t w = 0; w < words; w += kStepWords) {
        const std::int64_t c = w * S::kIntsPerWord;
        typename S::I x = S::set_int(0);
        if (!zero && c < block.columns) {
          x = S::round_to_int(S::mul(smoothed<S>(block, data + i * block.x.stride, c), factor));
        }
        if constexpr (S::kKeyCorrection != 0) sum = S::add_int(sum, x);
        S::store_quantised(to + w, x);
      }
      if (correction == nullptr) continue;
      correction[i] = 0;
      if constexpr (S::kKeyCorrection != 0) {
        correction[i] = S::kKeyCorrection * sum_of_lanes<S>(sum);
      }
    }
  });
}

/// Row i of V as 16-bit numbers, zeros behind the columns up to a whole vector.
template <class S, class T, class Out>
TESSERA_INLINE void quantise_value_row(const TokenBlock& block, const T* row, bool part,
                                       const float* inverse, Out* out) {
  for (std::int64_t c = 0; c < block.columns; c += S::kLanes) {
    typename S::V y = S::zero();
    if (part) {
      y = smoothed<S>(block, row, c);
      if (inverse != nullptr) {
        const typename S::V factor = S::load(inverse + c);
        y = round_to_e4m3<S>(S::mul(y, factor));
        y = S::select(S::equal(factor, S::zero()), S::zero(), y);
      }
    }
    S::store_from_f32(out + c, y);
  }
}

template <class S>
void quantise_value_rows(const TokenBlock& block, const ValueFormat& format, std::int64_t stride,
                         void* out) {
  with_pointer(block.x, [&](const auto* data) {
    for (std::int64_t i = 0; i < block.count; ++i) {
      const auto* row = data + i * block.x.stride;
      const bool part = takes_part(block, i);
      if (format.dtype == DType::f16) {
        quantise_value_row<S>(block, row, part, format.inverse,
                              static_cast<f16*>(out) + i * stride);
      } else {
        quantise_value_row<S>(block, row, part, format.inverse,
                              static_cast<bf16*>(out) + i * stride);
      }
    }
  });
}

}  // namespace tessera::cpu
