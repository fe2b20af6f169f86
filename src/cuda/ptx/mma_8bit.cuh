// Matrix products of one warp on registers in 8 and 4 bits (sm_80 and later).
//
// Fragments are those of m16n8k16 (mma.cuh) byte by byte: a word of A or B has four neighbouring
// 8-bit elements along k where that one has two of 16 bits, or eight of 4 bits. So ldmatrix brings
// them alike, and C is the same.
//
// Not every chip has every product. Those that lack one get its result from others:
//   4-bit integers     Ampere and Ada have them; Hopper and later multiply them as 8-bit ones.
//   e4m3               Ada and later have it; Ampere multiplies as f16, which holds every e4m3.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/ptx/e4m3.cuh"
#include "cuda/ptx/mma.cuh"

namespace tessera::cuda::ptx {

/// d += a · b in 8-bit integers: A 16×32, B 32×8.
__device__ __forceinline__ void mma_m16n8k32_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                                                std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900

/// What mma_m16n8k64_s4 has to be multiplied by.
inline constexpr float kS4Unit = 1;

/// d += a · b in 4-bit integers: A 16×64, B 64×8.
__device__ __forceinline__ void mma_m16n8k64_s4(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                                                std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else

/// What mma_m16n8k64_s4 has to be multiplied by.
inline constexpr float kS4Unit = 1.0f / 256;

/// d += 256 a · b in 4-bit integers: A 16×64, B 64×8. As the upper halves of bytes they are 16
/// times as large: the lower nibbles of all words are one product, the upper ones another.
__device__ __forceinline__ void mma_m16n8k64_s4(std::int32_t (&d)[4], const std::uint32_t (&a)[4],
                                                std::uint32_t b0, std::uint32_t b1) {
  constexpr std::uint32_t kUpper = 0xf0f0f0f0u;
  const std::uint32_t low[4] = {a[0] << 4 & kUpper, a[1] << 4 & kUpper, a[2] << 4 & kUpper,
                                a[3] << 4 & kUpper};
  const std::uint32_t high[4] = {a[0] & kUpper, a[1] & kUpper, a[2] & kUpper, a[3] & kUpper};
  mma_m16n8k32_s8(d, low, b0 << 4 & kUpper, b1 << 4 & kUpper);
  mma_m16n8k32_s8(d, high, b0 & kUpper, b1 & kUpper);
}

#endif

/// A, 16×32, in e4m3. Along k the elements of each 16 lie in the order 0 1 8 9 2 3 10 11 4 5 12 13
/// 6 7 14 15, so that a thread's four of a word are those of its elements in two neighbouring
/// accumulators.
struct E4m3Rows {
  std::uint32_t words[kHasE4m3 ? 4 : 8];

  /// Word `at` of the fragment, from numbers that are not negative and at most 448.
  __device__ __forceinline__ void set(int at, float x0, float x1, float x2, float x3) {
    if constexpr (kHasE4m3) {
      words[at] = pack_e4m3(x0, x1, x2, x3);
    } else {
      words[at / 2 * 4 + at % 2] = pack<__half>(rounded(x0), rounded(x1));
      words[at / 2 * 4 + at % 2 + 2] = pack<__half>(rounded(x2), rounded(x3));
    }
  }

  /// Word `at` keeps those of its four elements whose argument is 1; the others, 0, become zero.
  __device__ __forceinline__ void keep(int at, int pair, unsigned low, unsigned high) {
    if constexpr (kHasE4m3) {
      words[at] &= ~(0xffffu << (16 * pair)) | (low * 0xffu | high * 0xff00u) << (16 * pair);
    } else {
      words[at / 2 * 4 + at % 2 + 2 * pair] &= low * 0xffffu | high * 0xffff0000u;
    }
  }

 private:
  /// To four significant bits, then to whole multiples of e4m3's least denormal.
  __device__ __forceinline__ static float rounded(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    const float split = __fmul_rn(x, 1048577.0f);  // 2²⁰ + 1
    const float significant = __fsub_rn(split, __fsub_rn(split, x));
    return __fsub_rn(__fadd_rn(significant, kE4m3Units), kE4m3Units);
#else
    return x;
#endif
  }
};

/// The two e4m3 in the lower (`high` = false) or upper half of a word as f16.
__device__ __forceinline__ std::uint32_t e4m3_to_f16(std::uint32_t word, bool high) {
  const std::uint32_t bytes = __byte_perm(word, 0, high ? 0x3424 : 0x1404);
  const std::uint32_t bits = (bytes & 0x80008000u) | (bytes >> 1 & 0x3f803f80u);
  const __half2 scaled = __hmul2(reinterpret_cast<const __half2&>(bits), __float2half2_rn(256.0f));
  return reinterpret_cast<const std::uint32_t&>(scaled);
}

/// d += a · b in e4m3, B 32×8 with its rows in A's order.
__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&d)[4], const E4m3Rows& a,
                                                  std::uint32_t b0, std::uint32_t b1) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b0), "r"(b1));
#else
  const std::uint32_t b[2] = {b0, b1};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const std::uint32_t left[4] = {a.words[4 * k], a.words[4 * k + 1], a.words[4 * k + 2],
                                   a.words[4 * k + 3]};
    mma_m16n8k16<__half>(d, left, e4m3_to_f16(b[k], false), e4m3_to_f16(b[k], true));
  }
#endif
}

}  // namespace tessera::cuda::ptx
