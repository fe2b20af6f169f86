// Thread blocks of a cluster: their barrier and each other's shared memory (sm_90).
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}

/// All threads of all blocks arrive, and then wait: what they wrote before is visible after.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

/// Where another block has what this one has at `address` of shared memory.
__device__ __forceinline__ std::uint32_t cluster_address(std::uint32_t address, int rank) {
  std::uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

__device__ __forceinline__ float4 load_cluster_16(std::uint32_t from) {
  float4 x;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(from)
               : "memory");
  return x;
}

__device__ __forceinline__ std::uint32_t load_cluster_4(std::uint32_t from) {
  std::uint32_t x;
  asm volatile("ld.shared::cluster.u32 %0, [%1];\n" : "=r"(x) : "r"(from) : "memory");
  return x;
}

}  // namespace tessera::cuda::ptx
