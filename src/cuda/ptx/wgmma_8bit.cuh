// Matrix products of a warpgroup on 8-bit operands: wgmma (sm_90a). wgmma.cuh says what is common
// to all of its products; here a step along k has 32 elements.
//
// Both operands have their rows along k: unlike 16-bit ones, 8-bit operands cannot be transposed on
// the way. An operand A in registers, four words a thread, holds with g = lane / 4 and t = lane % 4
//   a[0] = A[g][4t … 4t + 3]       a[1] = A[g + 8][4t …]
//   a[2] = A[g][16 + 4t …]         a[3] = A[g + 8][16 + 4t …]
//
// The accumulators of e4m3 products keep 13 bits behind the leading one and cut off the rest.
#pragma once

#include <cstdint>

#include "cuda/ptx/wgmma.cuh"

namespace tessera::cuda::ptx {

/// d (+)= A · Bᵀ in s32: A 64 × 32 and B N × 32 of s8 in shared memory.
template <int kColumns>
struct WgmmaS8;

/// d (+)= A · Bᵀ in f32: A 64 × 32 of e4m3 in registers, B N × 32 of e4m3 in shared memory.
template <int kColumns>
struct WgmmaE4m3;

// Operand lists: %0 … of the N / 2 accumulators, and the accumulators themselves.
#define TESSERA_NAMES_64                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TESSERA_NAMES_72 TESSERA_NAMES_64 ", %32, %33, %34, %35"
#define TESSERA_NAMES_128                                                            \
  TESSERA_NAMES_64                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TESSERA_FOUR(constraint, n) \
  constraint(d[n][0]), constraint(d[n][1]), constraint(d[n][2]), constraint(d[n][3])
#define TESSERA_D_32(c, n) \
  TESSERA_FOUR(c, n), TESSERA_FOUR(c, n + 1), TESSERA_FOUR(c, n + 2), TESSERA_FOUR(c, n + 3)
#define TESSERA_D_64(c) TESSERA_D_32(c, 0), TESSERA_D_32(c, 4)
#define TESSERA_D_72(c) TESSERA_D_64(c), TESSERA_FOUR(c, 8)
#define TESSERA_D_128(c) TESSERA_D_64(c), TESSERA_D_32(c, 8), TESSERA_D_32(c, 12)

// x0 … x4: the numbers of the operands behind the accumulators.
#define TESSERA_S8(N, add, constraint, x0, x1)                                            \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " #add                               \
               ", 0;\n"                                                                   \
               "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" TESSERA_NAMES_##N \
               "}, %" #x0 ", %" #x1 ", add;\n}\n"                                         \
               : TESSERA_D_##N(constraint)                                                \
               : "l"(a), "l"(b))
#define TESSERA_E4M3(N, add, constraint, x0, x1, x2, x3, x4)                                  \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " #add                                   \
               ", 0;\n"                                                                       \
               "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" TESSERA_NAMES_##N \
               "}, {%" #x0 ", %" #x1 ", %" #x2 ", %" #x3 "}, %" #x4 ", add, 1, 1;\n}\n"       \
               : TESSERA_D_##N(constraint)                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define TESSERA_WGMMA_S8(N, x0, x1)                                                             \
  template <>                                                                                   \
  struct WgmmaS8<N> {                                                                           \
    template <bool kAdd>                                                                        \
    __device__ __forceinline__ static void shared(std::int32_t (&d)[N / 8][4], std::uint64_t a, \
                                                  std::uint64_t b) {                            \
      if constexpr (kAdd) {                                                                     \
        TESSERA_S8(N, 1, "+r", x0, x1);                                                         \
      } else {                                                                                  \
        TESSERA_S8(N, 0, "=r", x0, x1);                                                         \
      }                                                                                         \
    }                                                                                           \
  };
#define TESSERA_WGMMA_E4M3(N, x0, x1, x2, x3, x4)                                 \
  template <>                                                                     \
  struct WgmmaE4m3<N> {                                                           \
    template <bool kAdd>                                                          \
    __device__ __forceinline__ static void registers(float (&d)[N / 8][4],        \
                                                     const std::uint32_t (&a)[4], \
                                                     std::uint64_t b) {           \
      if constexpr (kAdd) {                                                       \
        TESSERA_E4M3(N, 1, "+f", x0, x1, x2, x3, x4);                             \
      } else {                                                                    \
        TESSERA_E4M3(N, 0, "=f", x0, x1, x2, x3, x4);                             \
      }                                                                           \
    }                                                                             \
  };
TESSERA_WGMMA_S8(64, 32, 33)
TESSERA_WGMMA_S8(128, 64, 65)
TESSERA_WGMMA_E4M3(64, 32, 33, 34, 35, 36)
TESSERA_WGMMA_E4M3(72, 36, 37, 38, 39, 40)
#undef TESSERA_WGMMA_S8
#undef TESSERA_WGMMA_E4M3
#undef TESSERA_S8
#undef TESSERA_E4M3
#undef TESSERA_FOUR
#undef TESSERA_D_32
#undef TESSERA_D_64
#undef TESSERA_D_72
#undef TESSERA_D_128
#undef TESSERA_NAMES_64
#undef TESSERA_NAMES_72
#undef TESSERA_NAMES_128

}  // namespace tessera::cuda::ptx
