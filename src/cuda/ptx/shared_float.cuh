// One float of shared memory.
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

__device__ __forceinline__ float load_shared_float(std::uint32_t from) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(x) : "r"(from) : "memory");
  return x;
}

}  // namespace tessera::cuda::ptx
