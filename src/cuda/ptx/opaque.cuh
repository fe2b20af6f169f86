// A say in what the compiler keeps in registers.
#pragma once

namespace tessera::cuda::ptx {

/// Hides from the compiler where a value came from. What depends on it is computed after this point
/// and once: neither moved in front of a loop, where it would hold registers for the sake of a rare
/// path, nor, short of registers, computed again in every iteration.
template <typename T>
__device__ __forceinline__ void make_opaque(T& x) {
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(x));
  } else {
    asm volatile("" : "+r"(x));
  }
}

}  // namespace tessera::cuda::ptx
