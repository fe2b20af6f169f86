// The AVX-512 vocabularies with what quantised kernels need: integers as quads of 8 bits.
#pragma once

#include "cpu/simd/avx512.hpp"

namespace tessera::cpu {

/// An AVX-512 vocabulary with conversions to integers and a few operations on bits.
template <class Base>
struct WithIntegers : Base {
  using typename Base::I;
  using typename Base::M;
  using typename Base::U;
  using typename Base::V;

  static constexpr int kIntsPerWord = 4;

  static I as_int(V x) { return _mm512_castps_si512(x); }
  static V as_float(I x) { return _mm512_castsi512_ps(x); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  /// To nearest even.
  static I round_to_int(V x) { return _mm512_cvtps_epi32(x); }
  static V ceil(V x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
  static M unordered(V x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
  static bool any(M m) { return m != 0; }
  static U max_word(U a, U b) { return _mm512_max_epu32(a, b); }
  /// 2^⌊log₂ |x|⌋ of a normal number; infinity for what is not finite.
  static V power_of_two(V x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7f800000)));
  }
  /// kLanes integers in the format in which words hold them.
  static void store_quantised(void* p, I x) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
};

/// Dot products of quads, AVX512-VNNI: unsigned by signed. Q is the unsigned side, its integers
/// raised by 128; a key's sums start at −128 times the sum of its integers.
struct SageAvx512 : WithIntegers<Avx512> {
  /// What words of Q are xor'ed with, and what the sum of a key's integers is multiplied by.
  static constexpr std::uint32_t kQueryOffset = 0x80808080u;
  static constexpr int kKeyCorrection = -128;

  /// sum + the dot products of each word of k with that of q.
  static I add_products(I sum, I k, I q) { return _mm512_dpbusd_epi32(sum, q, k); }
};

}  // namespace tessera::cpu
