// Barriers in shared memory that count arrivals and bytes (sm_90). They are addressed as all shared
// memory is here, by number, which leaves them to uniform registers.
//
// A barrier goes through phases 0, 1, 0, …; waiting for parity p returns once a phase of that
// parity is complete that is not older than the last one. Of a new barrier, parity 1 is complete.
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

inline constexpr int kMbarrierBytes = 8;

__device__ __forceinline__ void mbarrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n"
               :
               : "r"(barrier), "r"(arrivals)
               : "memory");
}

/// Makes new barriers visible to the copy engine.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" : : "r"(barrier) : "memory");
}

/// How many arrivals a warp's is. racecheck takes a barrier to order what the lanes that arrive
/// did, not what the rest of their warp did before __syncwarp(): in a build for it all lanes
/// arrive.
#ifdef TESSERA_RACECHECK
inline constexpr int kWarpArrivals = 32;
#else
inline constexpr int kWarpArrivals = 1;
#endif

/// A warp arrives, once all its lanes have come here.
__device__ __forceinline__ void mbarrier_arrive_warp(std::uint32_t barrier) {
  __syncwarp();
  if (kWarpArrivals > 1 || threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
}

/// Arrives; the phase also waits for `bytes` that asynchronous copies will bring.
__device__ __forceinline__ void mbarrier_arrive_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n"
               :
               : "r"(barrier), "r"(bytes)
               : "memory");
}

/// Waits for the phase of this parity. What was written before arrivals on it is visible then.
__device__ __forceinline__ void mbarrier_wait(std::uint32_t barrier, unsigned parity) {
  std::uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

}  // namespace tessera::cuda::ptx
