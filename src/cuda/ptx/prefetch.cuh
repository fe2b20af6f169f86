// Memory that will be read soon.
#pragma once

namespace tessera::cuda::ptx {

/// Asks for the line of an address of global memory to be in L2.
__device__ __forceinline__ void prefetch_l2(const void* at) {
  asm volatile("prefetch.global.L2 [%0];\n" : : "l"(at));
}

}  // namespace tessera::cuda::ptx
