// Matrix products of a warpgroup (four warps): wgmma (sm_90a).
//
// m64nNk16, f32 accumulators d[N / 8][4]: warp w of the group has rows [16 w, 16 w + 16), laid out
// as mma.m16n8k16's accumulators (mma.cuh), columns [8 n, 8 n + 8) in d[n]. An operand A in
// registers is laid out as mma.m16n8k16's, too. Operands in shared memory are described by
// 64-bit descriptors.
//
// Products are asynchronous: between `wgmma_commit` and the `wgmma_wait` that covers them neither
// their accumulators nor their operands in registers may be touched, and shared memory that they
// read may not be written. `wgmma_fence` stands before the first product after registers changed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace tessera::cuda::ptx {

/// How shared memory that wgmma reads is permuted, in 16-byte units of rows of that many bytes.
enum class Swizzle : std::uint32_t { bytes_128 = 1, bytes_64 = 2 };

/// Operand in shared memory (PTX ISA, "Matrix descriptor"). `leading` and `stride` in bytes: for an
/// operand whose rows lie along k, `stride` is from 8 rows to the next 8; for one whose rows lie
/// across k, `leading` is from one swizzle-wide panel of columns to the next, `stride` from 8 rows
/// to the next 8. The operand begins `offset` bytes behind `address`; named apart, a tile's
/// operands are one addition each, since what their addresses have in common is worked out once.
__device__ __forceinline__ std::uint64_t matrix_descriptor(std::uint32_t address, int offset,
                                                           int leading, int stride,
                                                           Swizzle swizzle) {
  const std::uint32_t low =
      address / 16 + static_cast<std::uint32_t>(leading / 16 << 16 | offset / 16);
  const std::uint32_t high =
      static_cast<std::uint32_t>(stride) >> 4 | static_cast<std::uint32_t>(swizzle) << 30;
  return static_cast<std::uint64_t>(high) << 32 | low;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

/// Waits until at most `kPending` committed groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from moving uses of an accumulator across this point.
template <int kTiles>
__device__ __forceinline__ void hold(float (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}
template <int kTiles>
__device__ __forceinline__ void hold(std::int32_t (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    asm volatile("" : "+r"(d[n][0]), "+r"(d[n][1]), "+r"(d[n][2]), "+r"(d[n][3])::"memory");
  }
}

/// The products with N = kColumns:
///   shared<add>(d, a, b)    d (+)= A · Bᵀ: A 64 × 16 and B N × 16 in shared memory, rows along k
///   across<add>(d, a, b)    d (+)= Aᵀ · B: A 16 × 64 and B 16 × N in shared memory, rows across k
///   mixed<add>(d, a, b)     d (+)= A · B: A 64 × 16 in shared memory, rows along k, B 16 × N in
///                           shared memory, rows across k
///   registers(d, a, b)      d += A · B: A 64 × 16 in registers, B 16 × N in shared memory, rows
///                           across k
template <typename T, int kColumns>
struct Wgmma;

// Operand lists: %0 … of the first N / 2 accumulators, and the accumulators themselves.
#define TESSERA_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define TESSERA_NAMES_32 TESSERA_NAMES_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TESSERA_NAMES_48 TESSERA_NAMES_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define TESSERA_NAMES_64 TESSERA_NAMES_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define TESSERA_NAMES_80 TESSERA_NAMES_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define TESSERA_NAMES_96 TESSERA_NAMES_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define TESSERA_NAMES_112 TESSERA_NAMES_96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define TESSERA_NAMES_128 TESSERA_NAMES_112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define TESSERA_NAMES_144 TESSERA_NAMES_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define TESSERA_NAMES_160 TESSERA_NAMES_144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define TESSERA_NAMES_176 TESSERA_NAMES_160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define TESSERA_NAMES_192 TESSERA_NAMES_176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define TESSERA_NAMES_208 TESSERA_NAMES_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define TESSERA_NAMES_224 TESSERA_NAMES_208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define TESSERA_NAMES_240 TESSERA_NAMES_224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define TESSERA_NAMES_256 TESSERA_NAMES_240 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define TESSERA_FOUR(constraint, n) \
  constraint(d[n][0]), constraint(d[n][1]), constraint(d[n][2]), constraint(d[n][3])
#define TESSERA_D_16(c) TESSERA_FOUR(c, 0), TESSERA_FOUR(c, 1)
#define TESSERA_D_32(c) TESSERA_D_16(c), TESSERA_FOUR(c, 2), TESSERA_FOUR(c, 3)
#define TESSERA_D_48(c) TESSERA_D_32(c), TESSERA_FOUR(c, 4), TESSERA_FOUR(c, 5)
#define TESSERA_D_64(c) TESSERA_D_48(c), TESSERA_FOUR(c, 6), TESSERA_FOUR(c, 7)
#define TESSERA_D_80(c) TESSERA_D_64(c), TESSERA_FOUR(c, 8), TESSERA_FOUR(c, 9)
#define TESSERA_D_96(c) TESSERA_D_80(c), TESSERA_FOUR(c, 10), TESSERA_FOUR(c, 11)
#define TESSERA_D_112(c) TESSERA_D_96(c), TESSERA_FOUR(c, 12), TESSERA_FOUR(c, 13)
#define TESSERA_D_128(c) TESSERA_D_112(c), TESSERA_FOUR(c, 14), TESSERA_FOUR(c, 15)
#define TESSERA_D_144(c) TESSERA_D_128(c), TESSERA_FOUR(c, 16), TESSERA_FOUR(c, 17)
#define TESSERA_D_160(c) TESSERA_D_144(c), TESSERA_FOUR(c, 18), TESSERA_FOUR(c, 19)
#define TESSERA_D_176(c) TESSERA_D_160(c), TESSERA_FOUR(c, 20), TESSERA_FOUR(c, 21)
#define TESSERA_D_192(c) TESSERA_D_176(c), TESSERA_FOUR(c, 22), TESSERA_FOUR(c, 23)
#define TESSERA_D_208(c) TESSERA_D_192(c), TESSERA_FOUR(c, 24), TESSERA_FOUR(c, 25)
#define TESSERA_D_224(c) TESSERA_D_208(c), TESSERA_FOUR(c, 26), TESSERA_FOUR(c, 27)
#define TESSERA_D_240(c) TESSERA_D_224(c), TESSERA_FOUR(c, 28), TESSERA_FOUR(c, 29)
#define TESSERA_D_256(c) TESSERA_D_240(c), TESSERA_FOUR(c, 30), TESSERA_FOUR(c, 31)

// x0 … x4: the numbers of the operands behind the accumulators. a_across, b_across: 1 if rows lie
// across k.
#define TESSERA_SHARED(N, type, add, constraint, a_across, b_across, x0, x1)         \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " #add                          \
               ", 0;\n"                                                              \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type       \
               " {" TESSERA_NAMES_##N "}, %" #x0 ", %" #x1 ", add, 1, 1, " #a_across \
                                      ", " #b_across ";\n}\n"                        \
               : TESSERA_D_##N(constraint)                                           \
               : "l"(a), "l"(b))
#define TESSERA_REGISTERS(N, type, x0, x1, x2, x3, x4)                                       \
  asm volatile(                                                                              \
      "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                         \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" TESSERA_NAMES_##N \
      "}, {%" #x0 ", %" #x1 ", %" #x2 ", %" #x3 "}, %" #x4 ", add, 1, 1, 1;\n}\n"            \
      : TESSERA_D_##N("+f")                                                                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define TESSERA_PRODUCT(name, N, a_across, b_across, x0, x1)                        \
  template <bool kAdd>                                                              \
  __device__ __forceinline__ static void name(float(&d)[N / 8][4], std::uint64_t a, \
                                              std::uint64_t b) {                    \
    if constexpr (std::is_same_v<T, __half>) {                                      \
      if constexpr (kAdd) {                                                         \
        TESSERA_SHARED(N, "f16", 1, "+f", a_across, b_across, x0, x1);              \
      } else {                                                                      \
        TESSERA_SHARED(N, "f16", 0, "=f", a_across, b_across, x0, x1);              \
      }                                                                             \
    } else if constexpr (kAdd) {                                                    \
      TESSERA_SHARED(N, "bf16", 1, "+f", a_across, b_across, x0, x1);               \
    } else {                                                                        \
      TESSERA_SHARED(N, "bf16", 0, "=f", a_across, b_across, x0, x1);               \
    }                                                                               \
  }
#define TESSERA_WGMMA(N, x0, x1, x2, x3, x4)                                      \
  template <typename T>                                                           \
  struct Wgmma<T, N> {                                                            \
    TESSERA_PRODUCT(shared, N, 0, 0, x0, x1)                                      \
    TESSERA_PRODUCT(across, N, 1, 1, x0, x1)                                      \
    TESSERA_PRODUCT(mixed, N, 0, 1, x0, x1)                                       \
    __device__ __forceinline__ static void registers(float (&d)[N / 8][4],        \
                                                     const std::uint32_t (&a)[4], \
                                                     std::uint64_t b) {           \
      if constexpr (std::is_same_v<T, __half>) {                                  \
        TESSERA_REGISTERS(N, "f16", x0, x1, x2, x3, x4);                          \
      } else {                                                                    \
        static_assert(std::is_same_v<T, __nv_bfloat16>);                          \
        TESSERA_REGISTERS(N, "bf16", x0, x1, x2, x3, x4);                         \
      }                                                                           \
    }                                                                             \
  };
TESSERA_WGMMA(16, 8, 9, 10, 11, 12)
TESSERA_WGMMA(32, 16, 17, 18, 19, 20)
TESSERA_WGMMA(48, 24, 25, 26, 27, 28)
TESSERA_WGMMA(64, 32, 33, 34, 35, 36)
TESSERA_WGMMA(80, 40, 41, 42, 43, 44)
TESSERA_WGMMA(96, 48, 49, 50, 51, 52)
TESSERA_WGMMA(112, 56, 57, 58, 59, 60)
TESSERA_WGMMA(128, 64, 65, 66, 67, 68)
TESSERA_WGMMA(144, 72, 73, 74, 75, 76)
TESSERA_WGMMA(160, 80, 81, 82, 83, 84)
TESSERA_WGMMA(176, 88, 89, 90, 91, 92)
TESSERA_WGMMA(192, 96, 97, 98, 99, 100)
TESSERA_WGMMA(208, 104, 105, 106, 107, 108)
TESSERA_WGMMA(224, 112, 113, 114, 115, 116)
TESSERA_WGMMA(240, 120, 121, 122, 123, 124)
TESSERA_WGMMA(256, 128, 129, 130, 131, 132)
#undef TESSERA_WGMMA
#undef TESSERA_PRODUCT
#undef TESSERA_REGISTERS
#undef TESSERA_SHARED
#undef TESSERA_FOUR
#undef TESSERA_NAMES_16
#undef TESSERA_D_16
#undef TESSERA_NAMES_32
#undef TESSERA_D_32
#undef TESSERA_NAMES_48
#undef TESSERA_D_48
#undef TESSERA_NAMES_64
#undef TESSERA_D_64
#undef TESSERA_NAMES_80
#undef TESSERA_D_80
#undef TESSERA_NAMES_96
#undef TESSERA_D_96
#undef TESSERA_NAMES_112
#undef TESSERA_D_112
#undef TESSERA_NAMES_128
#undef TESSERA_D_128
#undef TESSERA_NAMES_144
#undef TESSERA_D_144
#undef TESSERA_NAMES_160
#undef TESSERA_D_160
#undef TESSERA_NAMES_176
#undef TESSERA_D_176
#undef TESSERA_NAMES_192
#undef TESSERA_D_192
#undef TESSERA_NAMES_208
#undef TESSERA_D_208
#undef TESSERA_NAMES_224
#undef TESSERA_D_224
#undef TESSERA_NAMES_240
#undef TESSERA_D_240
#undef TESSERA_NAMES_256
#undef TESSERA_D_256

}  // namespace tessera::cuda::ptx
