// Barriers of a part of a block.
#pragma once

namespace tessera::cuda::ptx {

/// Waits until `threads` threads, whole warps, have come to barrier `id` (1 … 15), and makes what
/// they have written to shared memory visible to each other.
__device__ __forceinline__ void sync_group(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" : : "r"(id), "r"(threads) : "memory");
}

/// Arrives at a barrier that others wait at, without waiting.
__device__ __forceinline__ void arrive_group(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" : : "r"(id), "r"(threads) : "memory");
}

}  // namespace tessera::cuda::ptx
