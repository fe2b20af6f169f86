// What this machine's processor is and has.
#pragma once

#include <cstdint>
#include <string>

namespace tessera::cpu {

struct CpuInfo {
  std::string model;
  std::string features;      ///< Space-separated, those Tessera knows of.
  bool avx2 = false;         ///< With FMA and F16C.
  bool avx512 = false;       ///< F, BW, DQ and VL.
  bool avx512_vnni = false;  ///< With the above.
  bool avx512_bf16 = false;
  /// Whether dot products of bf16 pairs do more than f32 multiply-adds: Zen starts as
  /// many of them, each of twice the work; Sapphire Rapids a quarter, half the multiply-adds.
  bool fast_bf16_pairs = false;
  bool amx_int8 = false;  ///< With amx_bf16.
  bool amx_bf16 = false;  ///< With AVX-512 BF16, and the system lets this process use the tiles.
  int threads = 1;        ///< CPUs this process may use.
  std::int64_t l1_bytes = 0;
  std::int64_t l2_bytes = 0;
  std::int64_t l3_bytes = 0;
};

/// Read once, then cached. Caches that the system does not report get usual sizes.
const CpuInfo& cpu_info();

}  // namespace tessera::cpu
