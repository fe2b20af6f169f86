// Blocks of a cluster, which are there at the same time and reach each other's shared memory
// (sm_90).
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

/// This block's number in its cluster.
__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return static_cast<int>(rank);
}

/// Waits until all threads of the cluster that have not ended have come here.
__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;\n" ::
          : "memory");
}

/// Arrives at the barrier that is, in block `rank`, where `barrier` is in this one. Says that this
/// thread has read; what it has written is not made visible to that block, which would take a
/// barrier of all memory.
__device__ __forceinline__ void mbarrier_arrive_at(std::uint32_t barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n"
      :
      : "r"(barrier), "r"(rank)
      : "memory");
}

/// tma_load into the same place of every block whose bit is set in `blocks`, where it arrives with
/// its bytes at the barrier that is in the place of `barrier`.
__device__ __forceinline__ void tma_load_multicast(std::uint32_t to, const void* map,
                                                   std::uint32_t barrier, int x0, int x1, int x2,
                                                   int x3, std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;\n"
      :
      : "r"(to), "l"(map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "h"(blocks)
      : "memory");
}

}  // namespace tessera::cuda::ptx
