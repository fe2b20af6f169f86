// Copies of boxes of a tensor by the copy engine (sm_90), and the fence between what threads and
// what the engine or wgmma do with shared memory.
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

/// Starts to copy the box at (x0, x1, x2, x3) of the tensor that `map` (a CUtensorMap in parameter
/// space) describes to shared memory; arrives with its bytes at `barrier`. What lies outside of the
/// tensor becomes zero.
__device__ __forceinline__ void tma_load(std::uint32_t to, const void* map, std::uint32_t barrier,
                                         int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];\n"
      :
      : "r"(to), "l"(map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}

/// Starts to copy `bytes`, a multiple of 16, between addresses that are such multiples.
__device__ __forceinline__ void bulk_load(std::uint32_t to, const void* from, int bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n"
      :
      : "r"(to), "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Starts to copy the box at `from` in shared memory to (x0, x1, x2, x3) of the tensor; what would
/// lie outside of it is left out. Of the thread's next group.
__device__ __forceinline__ void tma_store(const void* map, std::uint32_t from, int x0, int x1,
                                          int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n"
      :
      : "l"(map), "r"(from), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}

/// Closes a group of copies to global memory.
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}

/// Waits until the engine has read the shared memory of all of the thread's groups.
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}

/// Fetches a tensor map ahead of its first use.
__device__ __forceinline__ void tma_prefetch(const void* map) {
  asm volatile("prefetch.tensormap [%0];\n" : : "l"(map) : "memory");
}

/// What this thread has done with shared memory comes before what the copy engine and wgmma do
/// after a barrier.
__device__ __forceinline__ void proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

}  // namespace tessera::cuda::ptx
