// The 8-bit float e4m3: 4 bits of exponent, 3 of mantissa; ±448 at most, ±2⁻⁹ at least (sm_89 and
// later).
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

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

}  // namespace tessera::cuda::ptx
