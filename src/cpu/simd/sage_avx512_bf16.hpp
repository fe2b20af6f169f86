// The AVX-512 BF16 vocabularies with what quantised kernels need: weights and values as pairs of
// bf16, and without matrix tiles integers as quads of 8 bits in vectors (AVX512-VNNI).
#pragma once

#include "cpu/simd/avx512_bf16.hpp"
#include "cpu/simd/sage_avx512.hpp"

namespace tessera::cpu {

/// A vocabulary of bf16 pairs with integers.
template <class Base>
struct WithIntegersAndPairs : WithIntegers<Base> {
  using typename WithIntegers<Base>::V;

  /// Both as bf16, which they are exactly: `even` in the lanes' low halves, `odd` in the high ones.
  static V exact_pairs(V even, V odd) {
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(
        0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd)));
  }
};

/// Vectors whose words are quads of bytes and whose sums are integers: those of A, which are
/// broadcast, are signed, those of B unsigned. What the offset of B adds to the sums of a row of A
/// is taken from what they start from.
struct SageAvx512Bf16Bytes : Avx512 {
  static constexpr bool kMatrixTiles = false;
  static constexpr bool kSumsHaveStarts = true;

  static V start_of(std::int32_t x) { return _mm512_castsi512_ps(_mm512_set1_epi32(x)); }
  /// A word of four bytes counts as two bf16.
  static V broadcast_pair(const bf16* p) {
    std::int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return _mm512_castsi512_ps(_mm512_set1_epi32(word));
  }
  static V add_pair_products(V sum, V a, V b) {
    return _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sum), _mm512_castps_si512(b),
                                                   _mm512_castps_si512(a)));
  }
};

struct SageAvx512Bf16 : WithIntegersAndPairs<Avx512Bf16> {
  using Bytes = SageAvx512Bf16Bytes;
  static constexpr std::uint32_t kQueryOffset = 0x80808080u;
  static constexpr int kKeyCorrection = -128;

  /// The base's under this vocabulary's name, since it is not inlined everywhere.
  __attribute__((flatten)) static void transpose(V (&r)[kLanes]) { Avx512Bf16::transpose(r); }
};

}  // namespace tessera::cpu
