// The 8-bit float e4m3: 4 bits of exponent, 3 of mantissa; ±448 at most, ±2⁻⁹ at least.
// Instructions of sm_89 and later; integer and f32 arithmetic with the same results before.
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890

inline constexpr bool kHasE4m3 = true;

/// Rounds four floats to nearest even, beyond ±448 to ±448: x0 into the lowest byte.
__device__ __forceinline__ std::uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  std::uint32_t word;
  asm("{\n.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}\n"
      : "=r"(word)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
  return word;
}

#else

inline constexpr bool kHasE4m3 = false;

/// At it the units of an f32's last place are 2⁻⁹, e4m3's least denormal.
inline constexpr float kE4m3Units = 24576.0f;

__device__ __forceinline__ std::uint32_t e4m3_code(float x) {
  constexpr std::uint32_t kLargest = 0x7e, kNan = 0x7f, kBias = 120u << 3;
  const float magnitude = fabsf(x);
  const std::uint32_t bits = __float_as_uint(magnitude);
  std::uint32_t code = min(((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - kBias, kLargest);
  if (magnitude < 0.015625f) {
    code = __float_as_uint(__fadd_rn(magnitude, kE4m3Units)) - __float_as_uint(kE4m3Units);
  }
  if (isnan(x)) code = kNan;
  return (__float_as_uint(x) >> 24 & 0x80u) | code;
}

/// Rounds four floats to nearest even, beyond ±448 to ±448: x0 into the lowest byte.
__device__ __forceinline__ std::uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  return e4m3_code(x0) | e4m3_code(x1) << 8 | e4m3_code(x2) << 16 | e4m3_code(x3) << 24;
}

#endif

}  // namespace tessera::cuda::ptx
