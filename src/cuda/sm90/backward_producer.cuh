// The warpgroup of a backward block that loads.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/sm90/backward_pipeline.cuh"
#include "cuda/sm90/load.cuh"

namespace tessera::cuda::sm90 {

/// The copy engine's view of the tensors.
struct BackwardMaps {
  CUtensorMap q, k, v, d_o;
};

/// The warpgroup that loads: one warp with the copy engine, or all four that copy.
template <BackwardConfig C>
class BackwardProducer {
  using Traits = BackwardTraits<C>;
  using T = typename Traits::T;

 public:
  __device__ BackwardProducer(const Parameters& p, const Gradients& g, const BackwardMaps& maps,
                              bool copies, const BackwardBlock& block,
                              const BackwardMemory<C>& memory)
      : p_(p),
        g_(g),
        maps_(maps),
        copies_(C.extras && copies),
        block_(block),
        memory_(memory),
        thread_(threadIdx.x % kGroupThreads) {}

  __device__ void run() {
    const bool walks = thread_ < kWarpSize;
    QueryWalk<C>& walk = memory_.walk();
    if (walks) walk.start(p_, block_.sequence, block_.area);
    meet();
    if (walk.at(0).exists) {
      load_keys(memory_.k(), memory_.k_full(), maps_.k, p_.k, p_.head_dim);
    }
    for (int number = 0;; ++number) {
      const int stage = number % C.stages;
      ptx::mbarrier_wait(memory_.empty(stage), (number / C.stages + 1) % 2);
      const QueryStep step = walk.at(number);
      if (ptx::kWarpArrivals > 1 && walks && thread_ != 0) {
        ptx::mbarrier_arrive(memory_.q_full(stage));  // what this lane wrote of the walk
      }
      if (!step.exists) {
        if (thread_ == 0) ptx::mbarrier_arrive(memory_.q_full(stage));
        return;
      }
      load_queries(memory_.q(stage), memory_.q_full(stage), maps_.q, p_.q, step, p_.head_dim);
      if (number == 0) {
        load_keys(memory_.v(), memory_.v_full(), maps_.v, p_.v, p_.head_dim_v);
      }
      load_queries(memory_.d_o(stage), memory_.d_o_full(stage), maps_.d_o, g_.d_o, step,
                   p_.head_dim_v);
      if (walks) {
        load_scalars(step, stage);
        walk.find(p_, block_.sequence, block_.area, number + 1);
      }
      meet();
    }
  }

 private:
  /// The other warps read what the first has written.
  __device__ __forceinline__ void meet() const {
    if (copies_) {
      ptx::sync_group(kBackwardProducerBarrier, kGroupThreads);
    } else {
      __syncwarp();
    }
  }

  template <typename Tile>
  __device__ __forceinline__ void load(const Tile& tile, std::uint32_t barrier,
                                       const CUtensorMap& map, const Rows& rows, RowsPlace place,
                                       int columns) const {
    if constexpr (C.extras) {
      if (copies_) {
        copy_tile<T>(tile, barrier, rows, place, columns, kBackwardProducerBarrier, thread_);
        return;
      }
    }
    if (p_.varlen) place.b = 0;
    if (thread_ == 0) ask_for_tile(tile, barrier, map, place);
  }

  template <typename Tile>
  __device__ __forceinline__ void load_keys(const Tile& tile, std::uint32_t barrier,
                                            const CUtensorMap& map, const Rows& rows,
                                            int columns) const {
    load(tile, barrier, map, rows,
         {block_.b, block_.h_kv, block_.sequence.kv_begin, block_.j0, block_.sequence.kv_len,
          block_.listed},
         columns);
  }

  template <typename Tile>
  __device__ __forceinline__ void load_queries(const Tile& tile, std::uint32_t barrier,
                                               const CUtensorMap& map, const Rows& rows,
                                               const QueryStep& step, int columns) const {
    load(tile, barrier, map, rows,
         {block_.b, step.h, block_.sequence.q_begin, step.visit.begin, block_.sequence.q_len,
          step.visit.listed},
         columns);
  }

  __device__ __forceinline__ void load_scalars(const QueryStep& step, int stage) const {
    float* const to = memory_.scalars(stage);
    for (int x = static_cast<int>(thread_); x < C.queries; x += kWarpSize) {
      const int i = step.visit.begin + x;
      const int token = block_.sequence.q_begin + i;
      const bool exists = i < block_.sequence.q_len;
      const float lse = exists ? *scalar_of(p_.lse, block_.b, step.h, token) : minus_infinity();
      to[x] = lse == minus_infinity() ? plus_infinity() : lse * kLog2e;
      to[C.queries + x] = exists ? *scalar_of(g_.delta, block_.b, step.h, token) : 0.0f;
    }
    ptx::mbarrier_arrive_warp(memory_.scalars_full(stage));
  }

  const Parameters& p_;
  const Gradients& g_;
  const BackwardMaps& maps_;
  const bool copies_;
  const BackwardBlock& block_;
  const BackwardMemory<C>& memory_;
  const unsigned thread_;
};

}  // namespace tessera::cuda::sm90
