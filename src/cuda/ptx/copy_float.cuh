// Copies of single floats to shared memory, which are rarely aligned to more (cp.async).
#pragma once

#include "cuda/ptx/shared.cuh"

namespace tessera::cuda::ptx {

/// Starts to copy a float, or 0 if it does not exist. Of the thread's next group (cp_async_commit).
__device__ __forceinline__ void copy_float(std::uint32_t to, const float* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n"
               :
               : "r"(to), "l"(from), "r"(exists ? 4 : 0)
               : "memory");
}

}  // namespace tessera::cuda::ptx
