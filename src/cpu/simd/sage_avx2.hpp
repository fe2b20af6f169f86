// The AVX2 vocabulary with what quantised kernels need: integers as pairs of 16 bits.
#pragma once

#include "cpu/simd/avx2.hpp"

namespace tessera::cpu {

struct SageAvx2 : Avx2 {
  /// vpmaddwd multiplies pairs: exact, where vpmaddubsw's 16-bit sums would saturate.
  static constexpr int kIntsPerWord = 2;
  static constexpr std::uint32_t kQueryOffset = 0;
  static constexpr int kKeyCorrection = 0;

  static I as_int(V x) { return _mm256_castps_si256(x); }
  static V as_float(I x) { return _mm256_castsi256_ps(x); }
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static I round_to_int(V x) { return _mm256_cvtps_epi32(x); }
  static V ceil(V x) { return _mm256_ceil_ps(x); }
  static V floor(V x) { return _mm256_floor_ps(x); }
  static M unordered(V x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
  static bool any(M m) { return _mm256_movemask_ps(m) != 0; }
  static U max_word(U a, U b) { return _mm256_max_epu32(a, b); }
  static V power_of_two(V x) { return _mm256_and_ps(x, _mm256_set1_ps(__builtin_inff())); }
  static void store_quantised(void* p, I x) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(x, x), 0x08);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static I add_products(I sum, I k, I q) { return _mm256_add_epi32(sum, _mm256_madd_epi16(k, q)); }
};

}  // namespace tessera::cpu
