// The AVX-512 vocabulary (F, BW, DQ, VL): 16 lanes, mask registers, vscalef.
//
// A vocabulary is a struct of static functions over V (floats), I (int32), U (uint32) and M (lane
// masks); the algorithms in cpu/kernel/ are templates over it. Included only by the translation
// unit that is compiled for this instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/storage.hpp"

namespace tessera::cpu {

struct Avx512 {
  static constexpr int kLanes = 16;
  /// Register tile of the matrix product: kTileRows broadcasts × kTileVectors vectors. 8 × 3
  /// accumulators, 3 vectors of B and 1 broadcast use 28 of the 32 registers.
  static constexpr int kTileRows = 8;
  static constexpr int kTileVectors = 3;

  using V = __m512;
  using I = __m512i;
  using U = __m512i;
  using M = __mmask16;

  static V zero() { return _mm512_setzero_ps(); }
  static V set(float x) { return _mm512_set1_ps(x); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V x) { _mm512_storeu_ps(p, x); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  /// −a · b + c.
  static V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
  /// b where a or b is NaN.
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V abs(V a) { return _mm512_abs_ps(a); }

  /// Whether fraction and scale_by_floor are there; round and scale_by_power otherwise (avx2.hpp).
  static constexpr bool kSplitsAtFloor = true;
  /// a − ⌊a⌋; 0 for infinities.
  static V fraction(V a) { return _mm512_reduce_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  /// a · 2^⌊n⌋; 0 where that underflows or n is −inf.
  static V scale_by_floor(V a, V n) { return _mm512_scalef_ps(a, n); }

  static I set_int(std::int32_t x) { return _mm512_set1_epi32(x); }
  static I load_int(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I abs_int(I a) { return _mm512_abs_epi32(a); }
  static V to_float(I a) { return _mm512_cvtepi32_ps(a); }

  static M less(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static M equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static M less_int(I a, I b) { return _mm512_cmplt_epi32_mask(a, b); }
  static M both(M a, M b) { return a & b; }
  static M neither(M a) { return static_cast<M>(~a); }
  /// a where m, else b.
  static V select(M m, V a, V b) { return _mm512_mask_blend_ps(m, b, a); }

  static V load_as_f32(const float* p) { return load(p); }
  static V load_as_f32(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static V load_as_f32(const bf16* p) {
    const __m512i wide =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static void store_from_f32(float* p, V x) { store(p, x); }
  static void store_from_f32(f16* p, V x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_from_f32(bf16* p, V x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), lsb);
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i bits = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bits));
  }

  static U set_word(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static U xor_word(U a, U b) { return _mm512_xor_si512(a, b); }
  /// High and low halves of the 64-bit products of two 32-bit words.
  static void multiply_words(U a, U b, U& high, U& low) {
    const __m512i even = _mm512_mul_epu32(a, b);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
    high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  }
  /// Lanes of a that have the one bit of b set.
  static M has_bit(U a, U b) { return _mm512_test_epi32_mask(a, b); }
  /// Lanes with a ≥ b, unsigned.
  static M at_least_word(U a, U b) { return _mm512_cmpge_epu32_mask(a, b); }

  /// Transposes a kLanes × kLanes block held in kLanes registers.
  static void transpose(V (&r)[kLanes]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      r[i] = pairs_low(t[i], t[i + 2]);
      r[i + 1] = pairs_high(t[i], t[i + 2]);
      r[i + 2] = pairs_low(t[i + 1], t[i + 3]);
      r[i + 3] = pairs_high(t[i + 1], t[i + 3]);
    }
    for (int half = 0; half < 16; half += 8) {
      for (int i = 0; i < 4; ++i) {
        t[half + i] = _mm512_shuffle_f32x4(r[half + i], r[half + i + 4], 0x88);
        t[half + i + 4] = _mm512_shuffle_f32x4(r[half + i], r[half + i + 4], 0xdd);
      }
    }
    for (int i = 0; i < 8; ++i) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
  }

 private:
  static V pairs_low(V a, V b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static V pairs_high(V a, V b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
};

}  // namespace tessera::cpu
