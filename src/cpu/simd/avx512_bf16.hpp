// The AVX-512 vocabulary with the dot products of bf16 pairs (AVX512_BF16).
#pragma once

#include "cpu/simd/avx512.hpp"

namespace tessera::cpu {

struct Avx512Bf16 : Avx512 {
  /// Whether products go to matrix tiles (simd/amx.hpp); to vectors of pairs otherwise.
  static constexpr bool kMatrixTiles = false;
  /// Whether sums start from numbers given for each row of A instead of from zero.
  static constexpr bool kSumsHaveStarts = false;
  static void configure_tiles() {}
  static void release_tiles() {}

  /// Two neighbours in every lane.
  static V broadcast_pair(const bf16* p) {
    std::int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  /// sum + the products of a's and b's low and high halves; denormals count as zero.
  static V add_pair_products(V sum, V a, V b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }

  static bool any(M m) { return m != 0; }

  using Avx512::store_from_f32;
  /// To nearest even; denormals become zero.
  static void store_from_f32(bf16* p, V x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
  }
  /// 16 elements of two rows, those of `even` in the lanes' low halves.
  static V zip(const bf16* even, const bf16* odd) {
    const __m512i low =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
    const __m512i high =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }

  /// bf16 of `even` in the lanes' low halves and of `odd` in their high ones, to nearest with ties
  /// away from zero.
  static V pairs(V even, V odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaa, low, high));
  }
  /// bf16 of 32 neighbours, 16 in each vector, to nearest even.
  static void store_halves(bf16* p, V first, V second) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(second, first));
  }
};

}  // namespace tessera::cpu
