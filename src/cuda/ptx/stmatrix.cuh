// stmatrix (sm_90).
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

/// The reverse of ldmatrix_x4 (shared.cuh).
__device__ __forceinline__ void stmatrix_x4(std::uint32_t address, std::uint32_t r0,
                                            std::uint32_t r1, std::uint32_t r2, std::uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n"
               :
               : "r"(address), "r"(r0), "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

}  // namespace tessera::cuda::ptx
