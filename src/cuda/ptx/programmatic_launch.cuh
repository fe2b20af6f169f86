// Kernels that begin before the stream's last one has ended (sm_90).
#pragma once

namespace tessera::cuda::ptx {

/// Waits until the kernels before this one have ended and what they wrote is visible. Without an
/// early start there is nothing to wait for.
__device__ __forceinline__ void wait_for_earlier_kernels() {
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

/// The next kernel may begin where there is room, once all blocks have come here or ended.
__device__ __forceinline__ void let_next_kernel_begin() {
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

}  // namespace tessera::cuda::ptx
