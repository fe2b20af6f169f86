// Additions to global memory that give nothing back.
#pragma once

namespace tessera::cuda::ptx {

/// Adds four floats at a 16-byte boundary, each atomically. One instruction from sm_90 on.
__device__ __forceinline__ void reduce_add_16(float* to, const float (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n"
               :
               : "l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
#else
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;\n"
                 :
                 : "l"(to + e), "f"(x[e])
                 : "memory");
  }
#endif
}

/// What another block has released with add_release is visible after it.
__device__ __forceinline__ int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ __forceinline__ void add_release(int* to, int x) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;\n" : : "l"(to), "r"(x) : "memory");
}

}  // namespace tessera::cuda::ptx
