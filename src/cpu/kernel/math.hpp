// Elementary functions on vectors.
#pragma once

#include "cpu/kernel/product.hpp"

namespace tessera::cpu {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.693147180559945309417f;
/// exp2 arguments are clamped here: 2^−200 is 0 in f32, and −inf must not meet a subtraction.
inline constexpr float kExp2Floor = -200.0f;
inline constexpr float kMinusInfinity = -__builtin_inff();
inline constexpr float kLargest = 3.402823466e38f;

/// 2^x for x ≤ 0 or moderate x > 0 (below 128): x = n + r with |r| ≤ ½, a degree-6 minimax
/// polynomial for 2^r (its own relative error 2^−28.5; 1.3 · 2^−24 with its f32 arithmetic), and n
/// added to the exponent. 0 for x ≤ −127 (AVX-512 keeps denormals down to −149). NaN stays NaN.
/// Where the vocabulary splits at the floor, r is in [0, 1] and the polynomial's error 2^−28.9.
template <class S>
TESSERA_INLINE typename S::V exp2(typename S::V x) {
  using V = typename S::V;
  if constexpr (S::kSplitsAtFloor) {
    // Two instructions take x apart and put the result together, infinities included.
    const V f = S::fraction(x);
    V p = S::set(2.16129396e-4f);
    p = S::fma(p, f, S::set(1.246783882e-3f));
    p = S::fma(p, f, S::set(9.675452486e-3f));
    p = S::fma(p, f, S::set(5.548527837e-2f));
    p = S::fma(p, f, S::set(0.2402293086f));
    p = S::fma(p, f, S::set(0.6931470633f));
    p = S::fma(p, f, S::set(1.0f));
    return S::scale_by_floor(p, x);
  } else {
    const V clamped = S::max(S::set(kExp2Floor), x);
    const V n = S::round(clamped);
    const V r = S::sub(clamped, n);
    V p = S::set(1.53458121587e-4f);
    p = S::fma(p, r, S::set(1.33999312095e-3f));
    p = S::fma(p, r, S::set(9.61848895652e-3f));
    p = S::fma(p, r, S::set(5.550328777e-2f));
    p = S::fma(p, r, S::set(0.240226468906f));
    p = S::fma(p, r, S::set(0.693147205737f));
    p = S::fma(p, r, S::set(1.0f));
    return S::scale_by_power(p, n);
  }
}

/// log₂ x in double for a positive normal double, to about 10⁻¹²: x = 2^e · m with m in [√½, √2),
/// and the series of atanh for log m. Plain arithmetic, so that a loop over it becomes vectors.
TESSERA_INLINE double log2_of(double x) {
  constexpr std::int64_t kBitsOfRootHalf = 0x3fe6a09e667f3bcd;
  std::int64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const std::int64_t exponent = (bits - kBitsOfRootHalf) >> 52;
  bits -= exponent * (std::int64_t{1} << 52);
  double m;
  __builtin_memcpy(&m, &bits, sizeof m);
  const double s = (m - 1) / (m + 1);
  const double z = s * s;
  double p = 1.0 / 15;
  p = p * z + 1.0 / 13;
  p = p * z + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  p = p * z + 1.0;
  return static_cast<double>(exponent) + 2.88539008177792681472 * s * p;
}

/// tanh x = (1 − e) / (1 + e) with e = 2^(−2 |x| log₂ e), sign restored; below 0.3 the odd Taylor
/// polynomial, because 1 − e loses digits there (the first term left out is under 2·10⁻⁸ of x).
template <class S>
TESSERA_INLINE typename S::V tanh(typename S::V x) {
  using V = typename S::V;
  const V magnitude = S::abs(x);
  const V e = exp2<S>(S::mul(magnitude, S::set(-2 * kLog2E)));
  const V ratio = S::div(S::sub(S::set(1), e), S::add(S::set(1), e));
  const V large = S::select(S::less(x, S::zero()), S::sub(S::zero(), ratio), ratio);
  const V y = S::mul(x, x);
  V p = S::set(-8.863235529e-3f);
  p = S::fma(p, y, S::set(2.186948854e-2f));
  p = S::fma(p, y, S::set(-5.396825397e-2f));
  p = S::fma(p, y, S::set(1.333333333e-1f));
  p = S::fma(p, y, S::set(-3.333333333e-1f));
  const V small = S::fma(S::mul(p, y), x, x);
  return S::select(S::less(magnitude, S::set(0.3f)), small, large);
}

/// Ten rounds of Philox4x32 on kLanes counters side by side; core/philox.hpp has the definition.
template <class S>
TESSERA_INLINE void philox(typename S::U (&c)[4], std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    typename S::U high0, low0, high1, low1;
    S::multiply_words(S::set_word(0xD2511F53u), c[0], high0, low0);
    S::multiply_words(S::set_word(0xCD9E8D57u), c[2], high1, low1);
    c[0] = S::xor_word(S::xor_word(high1, c[1]), S::set_word(key0));
    c[1] = low1;
    c[2] = S::xor_word(S::xor_word(high0, c[3]), S::set_word(key1));
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace tessera::cpu
