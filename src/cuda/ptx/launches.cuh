// A kernel that starts while the one before it on the stream ends (sm_90).
#pragma once

namespace tessera::cuda::ptx {

/// Blocks of the next kernel may start once all blocks of this one have come here.
__device__ __forceinline__ void release_next_launch() {
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

/// Until the kernel before this one has ended; what it wrote is visible then.
__device__ __forceinline__ void wait_for_launch() {
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

}  // namespace tessera::cuda::ptx
