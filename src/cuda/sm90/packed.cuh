// Short queries against many keys: forward attention that reads K and V once for a group of heads.
//
// The pipeline, tiles and consumers of forward.cuh, with other rows and other works:
//
//   a warpgroup's 64 rows: queries 0 … rows − 1 of 64 / rows neighbouring heads (rows 16, 32 or 64)
//   a work: the block's heads and one of `splits` parts of the keys, as even as whole tiles go
//   o / row sums and lse, f32 → workspace; merge_splits.hpp's kernel merges the parts
//
// Rows behind the last query are zero (the copy engine fills them in), heads behind the group's
// last are another group's: both are computed and not stored. Works are equal and every block takes
// each gridDim-th.
#pragma once

#include <algorithm>

#include "cuda/algo/config.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/registers.cuh"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/packed_variants.hpp"
#include "cuda/sm90/producer.cuh"

namespace tessera::cuda::sm90 {

/// Asks the copy engine for a work's tiles.
template <ForwardConfig C>
class PackedLoader {
  using Traits = KernelTraits<C>;

 public:
  __device__ PackedLoader(const Parameters& p, const TensorMaps& maps, const Packing& packing)
      : p_(p), maps_(maps), packing_(packing) {}

  __device__ __forceinline__ void load_q(const SharedMemory<C>& shared, int stage, int group,
                                         const Work& work) const {
    load(shared.q(stage, group), shared.q_full(stage, group), maps_.q, 0,
         work.tile.h + group * (kGroupRows / packing_.rows), work.tile.b);
  }
  __device__ __forceinline__ void load_k(const SharedMemory<C>& shared, int stage, const Work& work,
                                         const Visit& visit) const {
    load(shared.k(stage), shared.k_full(stage), maps_.k, visit.begin, work.tile.h / p_.group,
         work.tile.b);
  }
  __device__ __forceinline__ void load_v(const SharedMemory<C>& shared, int stage, const Work& work,
                                         const Visit& visit) const {
    load(shared.v(stage), shared.v_full(stage), maps_.v, visit.begin, work.tile.h / p_.group,
         work.tile.b);
  }

  /// A part without keys: its lse says so.
  __device__ void store_unattended(const Work& work) const {
    const int heads = min(C.tile_m / packing_.rows, p_.group - work.tile.h % p_.group);
    float* lse = packing_.partials.lse + work.split * packing_.partials.rows +
                 (std::int64_t{work.tile.b} * p_.heads_q + work.tile.h) * p_.seq_q;
    for (int x = static_cast<int>(threadIdx.x); x < heads * p_.seq_q; x += kWarpSize) {
      lse[x] = minus_infinity();
    }
  }

 private:
  template <typename Tile>
  __device__ __forceinline__ static void load(const Tile& tile, std::uint32_t barrier,
                                              const CUtensorMap& map, int row, int h, int b) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect(barrier, Tile::kBytes);
      load_panels(tile, barrier, map, 0, row, h, b);
    }
    __syncwarp();
  }

  const Parameters& p_;
  const TensorMaps& maps_;
  const Packing& packing_;
};

/// Part `split` of `splits` of the keys, whole tiles but for the ends.
template <int kTile>
__device__ __forceinline__ Range part_of(const Range& keys, int split, int splits) {
  if (keys.empty()) return {0, 0};
  const int first = keys.begin / kTile;
  const int tiles = (keys.end + kTile - 1) / kTile - first;
  const int each = (tiles + splits - 1) / splits;
  return {max(keys.begin, (first + split * each) * kTile),
          min(keys.end, (first + (split + 1) * each) * kTile)};
}

template <typename Config>
__global__ void __launch_bounds__(KernelTraits<Config::value>::kThreads, 1)
    packed_forward(const __grid_constant__ Parameters p, const __grid_constant__ ForwardMaps maps,
                   const __grid_constant__ Schedule schedule,
                   const __grid_constant__ Packing packing) {
  constexpr ForwardConfig C = Config::value;
  using Traits = KernelTraits<C>;
  extern __shared__ __align__(1024) std::byte bytes[];
  const SharedMemory<C> shared(ptx::shared_address(bytes));
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  const int group = uniform(static_cast<int>(threadIdx.x / kGroupThreads)) - 1;
  if (group < 0) {
    ptx::give_registers<Traits::kProducerRegisters>();
    if (threadIdx.x >= kWarpSize) return;
    Producer<C, PackedLoader<C>> producer(p, schedule, shared, PackedLoader<C>(p, maps, packing));
    for (int x = static_cast<int>(blockIdx.x); x < schedule.works;
         x += static_cast<int>(gridDim.x)) {
      const int plane = x / (packing.splits * packing.chunks);
      const int b = uniform(plane / p.heads_kv);
      const int chunk = x / packing.splits % packing.chunks;
      const int h = plane % p.heads_kv * p.group + chunk * (C.tile_m / packing.rows);
      const Work work{{b, uniform(h), 0}, uniform(sequence_of(p, b)), x % packing.splits};
      const Range rows{0, work.sequence.q_len};
      Range keys{0, 0};
      if (!rows.empty()) keys = visible_keys(p, work.sequence, rows.begin, rows.end);
      producer.load(work, rows, uniform(part_of<C.tile_n>(keys, work.split, packing.splits)));
    }
    producer.finish();
  } else {
    ptx::take_registers<Traits::kConsumerRegisters>();
    Consumer<C>(p, maps, false, shared, group, &packing).run();
  }
}

template <ForwardConfig C>
constexpr PackedVariant packed_variant() {
  return {C, [](const Parameters& p, const ForwardMaps& maps, const Packing& packing,
                const DeviceInfo& device, cudaStream_t stream) {
            const int works = p.batch * p.heads_kv * packing.chunks * packing.splits;
            const Schedule schedule{1, works, 1, nullptr};
            return launch("cuda_split_kv_sm90", packed_forward<Constant<C>>,
                          std::min(works, device.multiprocessors), KernelTraits<C>::kThreads,
                          C.shared_bytes(), stream, p, maps, schedule, packing);
          }};
}

}  // namespace tessera::cuda::sm90
