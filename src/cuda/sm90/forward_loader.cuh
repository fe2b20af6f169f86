// How the exact kernels' tiles get into shared memory. See forward.cuh.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/forward_traits.cuh"
#include "cuda/sm90/pipeline.cuh"
#include "cuda/sm90/store.cuh"

namespace tessera::cuda::sm90 {

template <ForwardConfig C>
class ForwardLoader {
  using Traits = KernelTraits<C>;
  using T = typename Traits::T;

 public:
  /// `copies`: the threads copy, all of them; else one thread asks the copy engine.
  __device__ ForwardLoader(const Parameters& p, const TensorMaps& maps, bool copies)
      : p_(p), maps_(maps), copies_(C.extras && copies) {}

  __device__ __forceinline__ void load_q(const SharedMemory<C>& shared, int stage, int group,
                                         const Work& work) const {
    load(shared.q(stage, group), shared.q_full(stage, group), maps_.q, p_.q, work.tile.b,
         work.tile.h, work.sequence.q_begin, work.tile.begin + group * kGroupRows,
         work.sequence.q_len, p_.head_dim, ~0u);
  }

  __device__ __forceinline__ void load_k(const SharedMemory<C>& shared, int stage, const Work& work,
                                         const Visit& visit) const {
    load_keys(shared.k(stage), shared.k_full(stage), maps_.k, p_.k, work, visit, p_.head_dim);
  }

  __device__ __forceinline__ void load_v(const SharedMemory<C>& shared, int stage, const Work& work,
                                         const Visit& visit) const {
    load_keys(shared.v(stage), shared.v_full(stage), maps_.v, p_.v, work, visit, p_.head_dim_v);
  }

  __device__ void store_unattended(const Work& work) const {
    sm90::store_unattended<C.tile_m, std::uint16_t>(p_, work.tile, work.sequence, C.extras);
  }

 private:
  template <typename Tile>
  __device__ __forceinline__ void load_keys(const Tile& tile, std::uint32_t barrier,
                                            const CUtensorMap& map, const Rows& rows,
                                            const Work& work, const Visit& visit,
                                            int columns) const {
    load(tile, barrier, map, rows, work.tile.b, work.tile.h / p_.group, work.sequence.kv_begin,
         visit.begin, work.sequence.kv_len, columns, visit.listed);
  }

  /// Fills a tile with rows [row, …) of a sequence whose first token is `origin`.
  template <typename Tile>
  __device__ __forceinline__ void load(const Tile& tile, std::uint32_t barrier,
                                       const CUtensorMap& map, const Rows& rows, int b, int h,
                                       int origin, int row, int count, int columns,
                                       unsigned listed) const {
    if constexpr (C.extras) {
      if (copies_) {
        load_tile<kGroupThreads>(tile, row_of<const T>(rows, b, h, origin), rows.stride_s,
                                 rows.vectors, row, count, columns, listed);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        ptx::proxy_fence();
        ptx::sync_group(kProducerBarrier, kGroupThreads);
        if (threadIdx.x == 0) ptx::mbarrier_arrive(barrier);
        return;
      }
    }
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect(barrier, Tile::kBytes);
      load_panels(tile, barrier, map, 0, origin + row, h, p_.varlen ? 0 : b);
    }
    __syncwarp();
  }

  const Parameters& p_;
  const TensorMaps& maps_;
  const bool copies_;
};

}  // namespace tessera::cuda::sm90
