// The AMX vocabulary with what quantised kernels need: matrix tiles of signed bytes (AMX-INT8).
#pragma once

#include "cpu/simd/amx.hpp"
#include "cpu/simd/sage_avx512_bf16.hpp"

namespace tessera::cpu {

/// Matrix tiles whose words are quads of signed bytes and whose sums are integers.
struct AmxBytes : Amx {
  /// C[r][n] += Σ_k A[r][k] · B[k / 4][n][k % 4] over 64 k.
  template <int kC, int kA, int kB>
  static void multiply_tiles() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};

struct SageAmx : WithIntegersAndPairs<Amx> {
  using Bytes = AmxBytes;
  static constexpr std::uint32_t kQueryOffset = 0;
  static constexpr int kKeyCorrection = 0;
};

}  // namespace tessera::cpu
