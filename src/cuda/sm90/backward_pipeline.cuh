// What the warpgroups of a backward block share: the config, tiles, barriers and scalars in shared
// memory.
#pragma once

#include "cuda/algo/uniform.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/opaque.cuh"
#include "cuda/sm80/backward_tiles.cuh"
#include "cuda/sm90/backward_variants.hpp"
#include "cuda/tile/group_products.cuh"

namespace tessera::cuda::sm90 {

using sm80::QueryAccumulators;
using sm80::QueryArea;
using sm80::QueryStep;
using sm80::QueryWalk;

inline constexpr int kBackwardStages = 2;
/// Barriers: K and V; for each stage Q, d_O, scalars, that they are free again, that d_s is there
/// and that it has been read.
inline constexpr int kBackwardBarriers = 2 + 6 * kBackwardStages;

constexpr BackwardConfig backward_config(int head_dim, int queries) {
  BackwardConfig c{head_dim, 128, queries, 8, 1, 16, kBackwardStages, 1};
  c.query_rows = queries == 64 ? 4 : 8;
  c.barrier_bytes = kBackwardBarriers * ptx::kMbarrierBytes;
  return c;
}

template <BackwardConfig C>
struct BackwardTraits : sm80::BackwardTiles<C> {
  using S = sm80::BackwardTiles<C>;
  using T = typename S::T;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (kConsumers + 1) * kGroupThreads;
  static constexpr int kConsumerThreads = kConsumers * kGroupThreads;
  static constexpr int kConsumerWarps = kConsumerThreads / kWarpSize;
  static constexpr int kPart = 64;  ///< Queries of a part.
  static constexpr int kParts = C.queries / kPart;
  static constexpr bool kKeepsScores = C.head_dim <= 64;  ///< d_s, as an operand in registers.
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 240;
  static_assert(S::kWarps == kConsumerWarps && C.keys == kConsumers * kGroupRows);
  static_assert(C.query_rows == kParts * kGroupRows / 16 && C.stages == kBackwardStages);
};

/// Named barriers: one of each consumer, one of the producer's, one where consumers meet.
inline constexpr int kBackwardGroupBarrier = 1;
inline constexpr int kBackwardProducerBarrier = 3;
inline constexpr int kBackwardMeetingBarrier = 4;

/// What all warps of a block know.
struct BackwardBlock {
  int number;  ///< Of the block.
  int b, h_kv, j0;
  Sequence sequence;
  QueryArea area;
  unsigned listed;  ///< Granules of keys.
};

/// Where everything is in shared memory.
template <BackwardConfig C>
class BackwardMemory {
  using S = typename BackwardTraits<C>::S;

 public:
  __device__ explicit BackwardMemory(unsigned char* shared)
      : shared_(shared), base_(ptx::shared_address(shared)) {}

  /// The same, but descriptors made of it are made where they are used: not kept in registers from
  /// one step to the next.
  __device__ __forceinline__ BackwardMemory anew() const {
    BackwardMemory memory = *this;
    ptx::make_opaque(memory.base_);
    memory.base_ = uniform(static_cast<int>(memory.base_));
    return memory;
  }

  __device__ __forceinline__ typename S::Keys k() const { return {base_}; }
  __device__ __forceinline__ typename S::Keys v() const { return {base_ + S::Keys::kBytes}; }
  __device__ __forceinline__ typename S::Queries q(int stage) const {
    return {base_ + S::kQueriesAt + 2 * stage * S::Queries::kBytes};
  }
  __device__ __forceinline__ typename S::Queries d_o(int stage) const {
    return {base_ + S::kQueriesAt + (2 * stage + 1) * S::Queries::kBytes};
  }
  __device__ __forceinline__ typename S::Scores d_s(int stage) const {
    return {base_ + S::kScoresAt + stage * S::Scores::kBytes};
  }
  /// lse of a stage's queries, then delta.
  __device__ __forceinline__ float* scalars(int stage) const {
    return reinterpret_cast<float*>(shared_ + S::kScalarsAt) + stage * S::kScalars;
  }
  __device__ __forceinline__ QueryWalk<C>& walk() const {
    static_assert(sizeof(QueryWalk<C>) <= sm80::kQueryWalkBytes);
    return *reinterpret_cast<QueryWalk<C>*>(shared_ + S::kWalkAt);
  }

  __device__ __forceinline__ std::uint32_t k_full() const { return barrier(0); }
  __device__ __forceinline__ std::uint32_t v_full() const { return barrier(1); }
  __device__ __forceinline__ std::uint32_t q_full(int stage) const { return barrier(2 + stage); }
  __device__ __forceinline__ std::uint32_t d_o_full(int stage) const {
    return barrier(2 + C.stages + stage);
  }
  __device__ __forceinline__ std::uint32_t scalars_full(int stage) const {
    return barrier(2 + 2 * C.stages + stage);
  }
  __device__ __forceinline__ std::uint32_t empty(int stage) const {
    return barrier(2 + 3 * C.stages + stage);
  }
  __device__ __forceinline__ std::uint32_t d_s_full(int stage) const {
    return barrier(2 + 4 * C.stages + stage);
  }
  __device__ __forceinline__ std::uint32_t d_s_empty(int stage) const {
    return barrier(2 + 5 * C.stages + stage);
  }

  /// One thread calls it, before all others are let on.
  __device__ void initialise() const {
    for (int n = 0; n < kBackwardBarriers; ++n) {
      const bool of_consumers = n >= 2 + 3 * C.stages;
      const int warps = of_consumers ? BackwardTraits<C>::kConsumerWarps : 1;
      // K, V and d_O come by the copy engine alone; with Q comes the walk, which a warp has
      // written.
      const bool copied = n < 2 || (n - 2) / C.stages == 1;
      ptx::mbarrier_init(barrier(n), copied ? warps : warps * ptx::kWarpArrivals);
    }
    ptx::mbarrier_init_fence();
  }

 private:
  __device__ __forceinline__ std::uint32_t barrier(int n) const {
    return base_ + S::kBarriersAt + n * ptx::kMbarrierBytes;
  }

  unsigned char* shared_;
  std::uint32_t base_;
};

}  // namespace tessera::cuda::sm90
