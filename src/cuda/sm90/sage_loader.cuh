// How the quantised kernels' tiles get into shared memory. See sage.cuh.
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/sage_traits.cuh"
#include "cuda/sm90/store.cuh"

namespace tessera::cuda::sm90 {

template <SageConfig C>
class SageLoader {
  using Traits = KernelTraits<C>;

 public:
  __device__ SageLoader(const Parameters& p, const TensorMaps& maps, const SageOperands& operands)
      : p_(p), maps_(maps), operands_(operands) {}

  __device__ __forceinline__ void load_q(const SharedMemory<C>& shared, int stage, int group,
                                         const Work& work) const {
    using Tile = typename Traits::QTile;
    const QuantisedOperands& x = operands_.tensors;
    const std::uint32_t barrier = shared.q_full(stage, group);
    const int row = begin(work.sequence.q_begin, work) + work.tile.begin + group * kGroupRows;
    if (threadIdx.x == 0 && Traits::kConverts && x.q == nullptr) {
      ptx::mbarrier_arrive(barrier);
    } else if (threadIdx.x == 0) {
      constexpr int kScales = kGroupRows / 4;
      constexpr int kBytes = Traits::kExtras ? 0 : kScales * static_cast<int>(sizeof(float));
      ptx::mbarrier_arrive_expect(barrier, Tile::kBytes + kBytes);
      load_panels(shared.q(stage, group), barrier, maps_.q, 0, row, work.tile.h, plane(work));
      if constexpr (!Traits::kExtras) {
        // Warpgroups may lie behind the last row.
        const std::int64_t at = (plane(work) * std::int64_t{p_.heads_q} + work.tile.h) * x.rows_q +
                                min(row, x.rows_q - kGroupRows);
        ptx::bulk_load(query_scales(shared, stage, group), x.q_scales + at / 4, kBytes, barrier);
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void load_k(const SharedMemory<C>& shared, int stage, const Work& work,
                                         const Visit& visit) const {
    using Tile = typename Traits::KTile;
    const std::uint32_t barrier = shared.k_full(stage);
    const int h = work.tile.h / p_.group;
    const int row = begin(work.sequence.kv_begin, work) + visit.begin;
    const int each =
        Traits::kExtras && operands_.tensors.token_scales ? 1 : 16;  // keys for each scale
    const int bytes = C.tile_n / each * static_cast<int>(sizeof(float));
    const std::int64_t at =
        (plane(work) * std::int64_t{p_.heads_kv} + h) * operands_.tensors.rows_kv + row;
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect(barrier, Tile::kBytes + bytes + Traits::kOffsetBytes);
      load_panels(shared.k(stage), barrier, maps_.k, 0, row, h, plane(work));
      ptx::bulk_load(shared.scales(stage), operands_.tensors.k_scales + at / each, bytes, barrier);
      if constexpr (Traits::kOffsetBytes > 0) {
        const std::int64_t offsets =
            (plane(work) * std::int64_t{p_.heads_q} + work.tile.h) * operands_.tensors.rows_kv +
            row;
        ptx::bulk_load(shared.scales(stage + 1) - Traits::kOffsetBytes,
                       operands_.tensors.key_offsets + offsets, Traits::kOffsetBytes, barrier);
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void load_v(const SharedMemory<C>& shared, int stage, const Work& work,
                                         const Visit& visit) const {
    const int row = begin(work.sequence.kv_begin, work) + visit.begin;
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect(shared.v_full(stage), C.head_dim_v * C.tile_n);
      load_panels(shared.v(stage), shared.v_full(stage), maps_.v, row / 2, 0,
                  work.tile.h / p_.group, plane(work));
    }
    __syncwarp();
  }

  __device__ void store_unattended(const Work& work) const {
    if (operands_.out == DType::f32) {
      sm90::store_unattended<C.tile_m, std::uint32_t>(p_, work.tile, work.sequence,
                                                      Traits::kExtras);
    } else {
      sm90::store_unattended<C.tile_m, std::uint16_t>(p_, work.tile, work.sequence,
                                                      Traits::kExtras);
    }
  }

 private:
  __device__ __forceinline__ int begin(int first, const Work& work) const {
    return p_.varlen ? padded_begin(first, work.tile.b) : 0;
  }
  __device__ __forceinline__ int plane(const Work& work) const {
    return p_.varlen ? 0 : work.tile.b;
  }

  const Parameters& p_;
  const TensorMaps& maps_;
  const SageOperands& operands_;
};

}  // namespace tessera::cuda::sm90
