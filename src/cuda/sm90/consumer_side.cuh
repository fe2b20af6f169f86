// A consumer's side of the pipeline: what it waits for, and what it lets the producer have back.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/sm90/pipeline.cuh"

namespace tessera::cuda::sm90 {

template <auto C>
class ConsumerSide {
 protected:
  /// `group`: 0 for the first consumer, which is the block's second warpgroup.
  __device__ ConsumerSide(const Parameters& p, const SharedMemory<C>& shared, int group)
      : p_(p), shared_(shared), group_(group) {}

  /// This warpgroup's part of a tile of queries.
  struct GroupWork : Work {
    Range whole;   ///< Keys that all of its rows see.
    int seen_end;  ///< Behind the last key that any of them sees.

    /// Whether any row sees keys from this tile on. Tiles ascend.
    __device__ __forceinline__ bool sees(const Message& visit) const {
      return visit.begin() < seen_end;
    }
  };

  /// Waits for the next Q.
  __device__ __forceinline__ GroupWork receive_work() {
    ptx::mbarrier_wait(shared_.q_full(q_.stage, group_), q_.parity);
    GroupWork work{shared_.read_work(q_.stage), {}, 0};
    // Packed, a warpgroup has all queries of its heads.
    constexpr bool kAll = KernelTraits<C>::kPacked;
    const int begin = work.tile.begin += kAll ? 0 : group_ * kGroupRows;
    const int end = kAll ? work.sequence.q_len : min(begin + kGroupRows, work.sequence.q_len);
    work.whole = common_keys(p_, work.sequence, begin, end);
    if (begin < end) work.seen_end = visible_keys(p_, work.sequence, begin, end).end;
    return work;
  }

  /// Waits for the next K.
  __device__ __forceinline__ Message receive() {
    ptx::mbarrier_wait(shared_.k_full(k_.stage), k_.parity);
    return shared_.read(k_.stage);
  }

  /// K may be overwritten, and behind its last key tile Q, unless it is held.
  __device__ __forceinline__ void release_k(const Message& visit) {
    release(shared_.k_empty(k_.stage));
    k_.advance();
    if (!KernelTraits<C>::kHoldsQ && !visit.has(Message::more)) {
      release(shared_.q_empty(q_.stage, group_));
      q_.advance();
    }
  }

  /// Lets go of key tiles from `visit` on, which none of its rows sees; their K has come.
  /// `first`: the work's first tile, which has no turn.
  __device__ __forceinline__ void pass_over(Message visit, bool first) {
    while (true) {
      if (C.turns && !first) {
        wait_turn();
        pass_turn();
      }
      first = false;
      release_k(visit);
      ptx::mbarrier_wait(shared_.v_full(v_.stage), v_.parity);
      release(shared_.v_empty(v_.stage));
      v_.advance();
      if (!visit.has(Message::more)) return;
      visit = receive();
    }
  }

  /// Consumers start their products in turns, so that one's exponentials run while another
  /// multiplies.
  __device__ __forceinline__ void wait_turn() const {
    ptx::sync_group(kTurnBarrier + group_, 2 * kGroupThreads);
  }
  __device__ __forceinline__ void pass_turn() const {
    const int next = group_ + 1 == KernelTraits<C>::kConsumers ? 0 : group_ + 1;
    ptx::arrive_group(kTurnBarrier + next, 2 * kGroupThreads);
  }

  /// All lanes have read what the barrier guards.
  __device__ __forceinline__ static void release(std::uint32_t barrier) {
    ptx::mbarrier_arrive_warp(barrier);
  }

  const Parameters& p_;
  const SharedMemory<C>& shared_;
  const int group_;
  Ring<C.q_stages> q_;
  Ring<KernelTraits<C>::kKStages> k_;
  Ring<KernelTraits<C>::kVStages> v_;
};

}  // namespace tessera::cuda::sm90
