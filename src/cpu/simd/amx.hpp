// The AVX-512 vocabulary with AMX's matrix tiles for bf16 (AMX-TILE, AMX-BF16).
//
// A thread has eight tile registers. All are configured to their largest shape, 16 rows of 64
// bytes: 16 × 16 sums in f32, 16 rows × 32 bf16 of A, or 16 rows × 16 pairs of bf16 of B. What does
// not fill a tile is padded with zeros in memory, so one configuration serves every product.
#pragma once

#include "cpu/simd/avx512_bf16.hpp"

namespace tessera::cpu {

struct Amx : Avx512Bf16 {
  static constexpr bool kMatrixTiles = true;
  /// Products on vectors (the bias gradient): 6 × 4 accumulators, 4 vectors of B and 1 broadcast.
  /// The four vectors are the width of the matrix products' panels too.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 4;

  /// Tile registers become usable on this thread, all zero.
  static void configure_tiles() {
    struct alignas(64) {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  static void release_tiles() { asm volatile("tilerelease"); }

  template <int kTile>
  static void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  /// 16 rows of 64 bytes, `stride` bytes apart.
  template <int kTile>
  static void load_tile(const void* p, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void store_tile(void* p, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
  }
  /// C[r][n] += Σ_k A[r][k] · B[k / 2][n][k % 2] over 32 k; denormals count as zero.
  template <int kC, int kA, int kB>
  static void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};

}  // namespace tessera::cpu
