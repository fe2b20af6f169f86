// Quantised forward attention on Hopper (SageAttention2, Zhang et al. 2024): Q and K in 8-bit
// integers, P and V in E4M3, by wgmma with the pipeline of the exact kernels (forward.cuh).
//
//   Q [64 × D] s8 for each consumer · K [tile_n × D] s8 with its scales, Vᵀ [Dv + 8 × tile_n] e4m3
//   in shared memory, in rings each consumer: S [64 × tile_n] s32 → P e4m3, one tile's P V [64 ×
//   64 and the ones] and O [64 × Dv] f32, in registers throughout
//
//   producer                                   consumer
//   as in forward.cuh; K comes with            for each j:
//   its scales; its other warps                  S = Q K_jᵀ, K back
//   convert the next work's Q
//                                                wait for its turn
//                                                mask → P = 2^(S · scales − m), pass the turn on
//                                                │ R = P V_j, O += R, 64 channels at a time
//                                                │ V back
//                                              O / row sums · scales of V → o
//
// Products take less time here than the weights between them, so a consumer does one thing after
// another, in few enough registers for three of them (a tile's S and R are never there together).
// Turns keep the three apart: without them all would wait for products at once and then be in each
// other's way.
//
// The quantise kernels (quant/) have put the operands into the workspace: V transposed, since 8-bit
// operands lie along k, and its keys in the order in which a thread has its scores, so that P goes
// from accumulators to operand as it is. Scales are such that a thread needs one for its two rows
// and one for 64 keys; they join the softmax's scale.
//
// Below each V tile lie eight rows of ones: their product is the row sums of the rounded weights,
// which so cost no instruction. The tensor cores' sums keep 13 bits, so each tile's product starts
// from zero and is added to O in f32.
//
// Blocks that a last round of works would leave idle share its keys out (last_round.hpp).
//
// Where all of Q was smoothed, a number for each key comes with K and is added to its scores before
// the softmax's scale; so scores are floats from then on. What else there is to scores takes the
// variant with two consumers, which have the registers for it.
//
// The workspace holds zeros for keys that are not used and ends sequences at whole tiles, so
// nothing has to be cleared in shared memory.
#pragma once

#include <algorithm>
#include <string_view>

#include "cuda/algo/config.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/launches.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/sage_consumer.cuh"
#include "cuda/sm90/sage_loader.cuh"
#include "cuda/sm90/sage_queries.cuh"
#include "cuda/sm90/schedule.cuh"

namespace tessera::cuda::sm90 {

/// The rows of ones of all stages. All threads call it, before a barrier.
template <SageConfig C>
__device__ __forceinline__ void write_ones(const SharedMemory<C>& shared) {
  using Tile = typename KernelTraits<C>::VTile;
  constexpr std::uint32_t kOnes = 0x38383838;
  constexpr int kVectors = 8 * Tile::kRowVectors;
  for (int x = static_cast<int>(threadIdx.x); x < C.stages * kVectors; x += blockDim.x) {
    const int row = C.head_dim_v + x % kVectors / Tile::kRowVectors;
    ptx::store_shared_16(shared.v(x / kVectors).at(row, x % Tile::kRowVectors), kOnes, kOnes, kOnes,
                         kOnes);
  }
  ptx::proxy_fence();
}

template <typename Config>
__global__ void __launch_bounds__(KernelTraits<Config::value>::kThreads, 1)
    sage_forward(const __grid_constant__ Parameters p, const __grid_constant__ TensorMaps maps,
                 const __grid_constant__ SageOperands operands,
                 const __grid_constant__ Schedule schedule) {
  constexpr SageConfig C = Config::value;
  using Traits = KernelTraits<C>;
  extern __shared__ __align__(1024) std::byte bytes[];
  const SharedMemory<C> shared(ptx::shared_address(bytes));
  const bool converts = Traits::kConverts && operands.tensors.q == nullptr;
  if (threadIdx.x == 0) {
    shared.initialise(converts ? 1 + ptx::kWarpArrivals : 1);
    if constexpr (Traits::kConverts) NextWorks<C>(shared).initialise();
  }
  write_ones<C>(shared);
  __syncthreads();
  const int group = uniform(static_cast<int>(threadIdx.x / kGroupThreads)) - 1;
  if (group < 0) {
    ptx::give_registers<Traits::kProducerRegisters>();
    const int warp = uniform(static_cast<int>(threadIdx.x / kWarpSize));
    // What quantise kernels have written is waited for by those who ask for it first.
    if (warp == 0) {
      ptx::wait_for_launch();
      Producer<C, SageLoader<C>> producer(p, schedule, shared, SageLoader<C>(p, maps, operands));
      if constexpr (Traits::kConverts) {
        NextWorks<C> next(shared);
        producer.run([&](const BlockWorks& works) {
          if (converts) next.write(works.after());
        });
      } else {
        producer.run();
      }
    } else if constexpr (Traits::kConverts) {
      if (converts && warp <= Traits::kConsumers) {
        if (C.scope == SageConfig::smooth_q) ptx::wait_for_launch();
        QueryConverter<C>(p, schedule, operands, shared, warp - 1).run();
      }
    }
  } else {
    ptx::take_registers<Traits::kConsumerRegisters>();
    SageConsumer<C>(p, operands, schedule.last, shared, group).run();
  }
}

template <SageConfig C>
constexpr SageVariant sage_variant() {
  return {
      C, [](const Parameters& p, const TensorMaps& maps, const SageOperands& operands, int* counter,
            const Sharing& sharing, const DeviceInfo& device, cudaStream_t stream) {
        constexpr std::string_view kName = "cuda_sage_sm90 forward";
        Schedule schedule;
        if (Status status = make_schedule(kName, p, {C.tile_m, 1, true, true}, counter, device,
                                          stream, schedule);
            !status.ok()) {
          return status;
        }
        schedule.last = sharing;
        if (const int shares = sharing.shares(schedule.works); shares > 0) {
          schedule.works = sharing.whole + shares;
        }
        return launch(kName, sage_forward<Constant<C>>,
                      LaunchShape{std::min(schedule.works, device.multiprocessors),
                                  KernelTraits<C>::kThreads, C.shared_bytes(), 1, true},
                      stream, p, maps, operands, schedule);
      }};
}

}  // namespace tessera::cuda::sm90
