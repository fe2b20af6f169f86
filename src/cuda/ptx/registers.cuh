// How many registers the threads of a warpgroup have (sm_90a).
#pragma once

namespace tessera::cuda::ptx {

/// Gives registers back until each thread has kCount (a multiple of 8).
template <int kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

/// Waits until there are registers for kCount a thread.
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

}  // namespace tessera::cuda::ptx
