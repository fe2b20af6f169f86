// Forward attention on Hopper: wgmma, the copy engine and specialised warpgroups, after
// FlashAttention-3.
//
// One block stays on each multiprocessor, with one warpgroup that loads and two or three that
// multiply, and takes tiles of queries until there are none:
//
//   Q [64 × D] for each consumer · K, V [tile_n × D], [tile_n × Dv] in shared memory, in rings
//   each consumer: S [64 × tile_n] f32 → P 16-bit, O [64 × Dv] f32, in registers throughout
//
//   producer                                   consumer
//   for each key tile j that the rows see:     S = Q K₀ᵀ → P₀
//     K_j → shared, with a message             for each further j:
//     Q → shared, with its work (j = 0)        │ wait for its turn
//     V_j → shared                             │ start S = Q K_jᵀ, start O += P_j−1 V_j−1
//                                              │ pass the turn on
//                                              │ wait for S: features → mask → 2^(S − m), row sums
//                                              │ wait for O; P_j = S; rarely S once more, and O
//                                              │   multiplied, since a weight was too large
//                                              O += P V; O / row sums → shared, where Q was → o
//
// With two stages of Q, o leaves through the one that its Q was in, which is held until the copy
// engine has read it, in the next work; with one, registers go to memory. Configs that pass over
// tiles take part in the turns of those that none of a warpgroup's rows sees, and multiply nothing.
//
// A warpgroup's exponentials run under its own second product and under the products of the others,
// which the turns keep apart. Registers go from the producer, which needs few, to the consumers.
//
// Whether a weight is too large for its 16 bits the maxima of S say before, or at head dim 64,
// where they cost the most, the row sums behind: then a warp multiplies its rows of S once more by
// itself, out of the tile of K that is held for that long.
//
// Which tiles of queries and keys there are only the producer works out; it says so in messages
// that lie beside the tiles. Barriers count: a full one the bytes that the copy engine brings, an
// empty one the warps that have read. Works of unequal length are handed out by a counter in the
// workspace, the longest first.
//
// The copy engine fills with zeros what lies beyond the tensor. Keys behind the used length that
// lie within it, and those of unlisted mask blocks, come along; their scores become −inf, and their
// rows of V zero in shared memory, so that 0 · v is 0.
//
// Tensors whose rows are not whole 16-byte vectors the producer's threads copy (`extras` only).
#pragma once

#include <algorithm>
#include <string_view>

#include "cuda/algo/config.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/launches.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/forward_loader.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/schedule.cuh"

namespace tessera::cuda::sm90 {

template <typename Config>
__global__ void __launch_bounds__(KernelTraits<Config::value>::kThreads, 1)
    forward(const __grid_constant__ Parameters p, const __grid_constant__ ForwardMaps maps,
            bool copies, const __grid_constant__ Schedule schedule) {
  constexpr ForwardConfig C = Config::value;
  using Traits = KernelTraits<C>;
  extern __shared__ __align__(1024) std::byte bytes[];
  const SharedMemory<C> shared(ptx::shared_address(bytes));
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  ptx::release_next_launch();
  ptx::wait_for_launch();
  const int group = uniform(static_cast<int>(threadIdx.x / kGroupThreads)) - 1;
  if (group < 0) {
    ptx::give_registers<Traits::kProducerRegisters>();
    const bool all = C.extras && copies;
    if (threadIdx.x >= kWarpSize && !all) return;
    Producer<C, ForwardLoader<C>>(p, schedule, shared, ForwardLoader<C>(p, maps, all)).run();
  } else {
    ptx::take_registers<Traits::kConsumerRegisters>();
    Consumer<C>(p, maps, copies, shared, group).run();
  }
}

template <ForwardConfig C>
constexpr ForwardVariant forward_variant() {
  return {C, [](const Parameters& p, const ForwardMaps* maps, int* counter,
                const DeviceInfo& device, cudaStream_t stream) {
            constexpr std::string_view kName = "cuda_sm90 forward";
            Schedule schedule;
            if (Status status =
                    make_schedule(kName, p, {C.tile_m, 2, maps != nullptr, false, kGroupRows},
                                  counter, device, stream, schedule);
                !status.ok()) {
              return status;
            }
            const LaunchShape shape{std::min(schedule.works, device.multiprocessors),
                                    KernelTraits<C>::kThreads, C.shared_bytes(), 1,
                                    schedule.counter == nullptr};
            return launch(kName, forward<Constant<C>>, shape, stream, p,
                          maps != nullptr ? *maps : ForwardMaps{}, maps == nullptr, schedule);
          }};
}

}  // namespace tessera::cuda::sm90
