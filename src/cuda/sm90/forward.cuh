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
//                                              │ wait for O; P_j = S
//                                              O += P V; O / row sums → o, from registers
//
// A warpgroup's exponentials run under its own second product and under the products of the others,
// which the turns keep apart. Registers go from the producer, which needs few, to the consumers.
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
#include <limits>

#include "cuda/algo/config.hpp"
#include "cuda/ptx/registers.cuh"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/producer.cuh"

namespace tessera::cuda::sm90 {

template <typename Config>
__global__ void __launch_bounds__(ForwardTraits<Config::value>::kThreads, 1)
    forward(const __grid_constant__ Parameters p, const __grid_constant__ TensorMaps maps,
            bool copies, const __grid_constant__ Schedule schedule) {
  constexpr ForwardConfig C = Config::value;
  using Traits = ForwardTraits<C>;
  extern __shared__ __align__(1024) std::byte bytes[];
  const SharedMemory<C> shared(ptx::shared_address(bytes));
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  const int group = uniform(static_cast<int>(threadIdx.x / kGroupThreads)) - 1;
  if (group < 0) {
    ptx::give_registers<Traits::kProducerRegisters>();
    const bool all = C.extras && copies;
    if (threadIdx.x >= kWarpSize && !all) return;
    Producer<C>(p, maps, schedule, all, shared).run();
  } else {
    ptx::take_registers<Traits::kConsumerRegisters>();
    Consumer<C>(p, shared, group).run();
  }
}

/// Equal works keep the order of the tensors in memory and need no counter.
inline Schedule make_schedule(const Parameters& p, const ForwardConfig& c, bool copies,
                              int* counter, const DeviceInfo& device) {
  const std::int64_t tiles = tiles_per_head(p, p.seq_q, c.tile_m);
  const bool equal = p.window_left == kUnbounded && p.window_right == kUnbounded && !p.varlen &&
                     p.block_mask.row_offsets == nullptr;
  // Blocks on the same K and V at the same time need them once from memory; 8 are enough.
  const std::int64_t plane_bytes = std::int64_t{2} * (p.head_dim + p.head_dim_v) * p.seq_kv;
  const std::int64_t cached = device.l2_bytes / 2 / std::max<std::int64_t>(plane_bytes, 1);
  const std::int64_t planes =
      equal ? 1 : std::max<std::int64_t>(cached, device.multiprocessors / 8);
  return {static_cast<int>(p.varlen ? tiles : tiles / std::max(p.batch, 1)),
          static_cast<int>(tiles * p.heads_q),
          static_cast<int>(std::clamp<std::int64_t>(
              planes, 1, std::max<std::int64_t>(std::int64_t{p.batch} * p.heads_kv, 1))),
          equal || copies ? nullptr : counter};
}

template <ForwardConfig C>
constexpr ForwardVariant forward_variant() {
  return {C, [](const Parameters& p, const TensorMaps* maps, int* counter, const DeviceInfo& device,
                cudaStream_t stream) {
            const std::int64_t works = tiles_per_head(p, p.seq_q, C.tile_m) * p.heads_q;
            if (works > std::numeric_limits<int>::max()) {
              return Status(StatusCode::unsupported,
                            "cuda_sm90 forward: more tiles than int counts");
            }
            const Schedule schedule = make_schedule(p, C, maps == nullptr, counter, device);
            if (schedule.counter != nullptr) {
              const cudaError_t error = cudaMemsetAsync(counter, 0, sizeof(int), stream);
              if (error != cudaSuccess) {
                cudaGetLastError();
                return error_status(error, "cuda_sm90 forward");
              }
            }
            return launch("cuda_sm90 forward", forward<Constant<C>>,
                          std::min<std::int64_t>(works, device.multiprocessors),
                          ForwardTraits<C>::kThreads, C.shared_bytes(), stream, p,
                          maps != nullptr ? *maps : TensorMaps{}, maps == nullptr, schedule);
          }};
}

}  // namespace tessera::cuda::sm90
