// The warpgroups of a backward block that multiply. Their schedule: backward.cuh.
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm80/backward_passes.cuh"
#include "cuda/sm80/backward_scores.cuh"
#include "cuda/sm80/backward_turns.cuh"
#include "cuda/sm90/backward_pipeline.cuh"

namespace tessera::cuda::sm90 {

/// A warpgroup that multiplies.
template <BackwardConfig C>
class BackwardConsumer {
  using Traits = BackwardTraits<C>;
  using S = typename Traits::S;
  using T = typename Traits::T;
  static constexpr int kPart = Traits::kPart;
  using Scores = float[1][kPart / 8][4];
  using Operands = sm80::ScoreOperands<1, kPart / 8>;

 public:
  __device__ BackwardConsumer(const Parameters& p, const QueryAccumulators& accumulators,
                              bool copied, const BackwardBlock& block,
                              const BackwardMemory<C>& memory)
      : p_(p),
        accumulators_(accumulators),
        copied_(C.extras && copied),
        block_(block),
        memory_(memory),
        group_(uniform(static_cast<int>(threadIdx.x / kGroupThreads))),
        warp_(uniform(static_cast<int>(threadIdx.x / kWarpSize))) {}

  /// d_k and d_v of the block's keys are zero at the start.
  __device__ __forceinline__ void run(sm80::KeyGradient<C>& d_k, sm80::KeyGradient<C>& d_v) {
    QueryStep step = receive(0);
    if (!step.exists) return;
    Operands operands;
    QueryStep before;
    first_parts(step, operands, d_k, d_v);
    for (int number = 1;; ++number) {
      before = step;
      step = receive(number);
      if (!step.exists) {
        last_d_q(before, number);
        break;
      }
      later_parts(step, before, number, operands, d_k, d_v);
    }
    ptx::hold(d_k[0]);
    ptx::hold(d_v[0]);
  }

 private:
  using QueryGradient = float[1][S::kQueryWarpDims / 8][4];

  /// Waits for the Q of a step.
  __device__ __forceinline__ QueryStep receive(int number) const {
    ptx::mbarrier_wait(memory_.q_full(number % C.stages), phase(number));
    const QueryStep step = memory_.walk().at(number);
    return {uniform(step.exists), uniform(step.h), uniform(step.turn), uniform(step.visit)};
  }
  __device__ __forceinline__ static unsigned phase(int number) { return number / C.stages % 2; }

  /// The first step: there is no d_q yet, and nothing under way.
  __device__ __forceinline__ void first_parts(const QueryStep& step, Operands& operands,
                                              sm80::KeyGradient<C>& d_k,
                                              sm80::KeyGradient<C>& d_v) const {
    ptx::hold(d_k[0]);
    ptx::hold(d_v[0]);
    ptx::mbarrier_wait(memory_.k_full(), 0);
    clear_keys(memory_.k());
    clear_queries(memory_.q(0), step);
#pragma unroll
    for (int part = 0; part < Traits::kParts; ++part) {
      Scores s, d_p;
      start_scores(s, memory_.k(), memory_.q(0), part);
      if (part == 0) {
        ptx::mbarrier_wait(memory_.v_full(), 0);
        clear_keys(memory_.v());
        ptx::mbarrier_wait(memory_.d_o_full(0), 0);
        clear_queries(memory_.d_o(0), step);
      } else {
        finish_key_gradients(d_k, d_v);
      }
      start_scores(d_p, memory_.v(), memory_.d_o(0), part);
      if (part == 0) ptx::mbarrier_wait(memory_.scalars_full(0), 0);
      finish_scores(s, d_p);
      weigh(s, d_p, step, 0, part, operands);
      start_key_gradients(operands, 0, part, d_k, d_v);
    }
    ptx::mbarrier_arrive_warp(memory_.d_s_full(0));
  }

  __device__ __forceinline__ void later_parts(const QueryStep& step, const QueryStep& before,
                                              int number, Operands& operands,
                                              sm80::KeyGradient<C>& d_k,
                                              sm80::KeyGradient<C>& d_v) {
    const int stage = number % C.stages;
    memory_ = memory_.anew();
    clear_queries(memory_.q(stage), step);
    if (added_to_ >= 0) sm80::end_turn(accumulators_, added_to_);
#pragma unroll
    for (int part = 0; part < Traits::kParts; ++part) {
      Scores s, d_p;
      start_scores(s, memory_.k(), memory_.q(stage), part);
      finish_key_gradients(d_k, d_v);
      if (part == 0) {
        release((number - 1) % C.stages);
        ptx::mbarrier_wait(memory_.d_o_full(stage), phase(number));
        clear_queries(memory_.d_o(stage), step);
      }
      start_scores(d_p, memory_.v(), memory_.d_o(stage), part);
      if (part == 0) ptx::mbarrier_wait(memory_.scalars_full(stage), phase(number));
      finish_scores(s, d_p);
      weigh(s, d_p, step, stage, part, operands);
      QueryGradient d_q;
      if (part == 0) {
        start_d_q(d_q, number - 1);
        ptx::mbarrier_wait(memory_.d_s_empty(stage), phase(number) ^ 1);
      }
      start_key_gradients(operands, stage, part, d_k, d_v);
      if (part == Traits::kParts - 1) ptx::mbarrier_arrive_warp(memory_.d_s_full(stage));
      if (part == 0) {
        ptx::wgmma_wait<1>();
        ptx::mbarrier_arrive_warp(memory_.d_s_empty((number - 1) % C.stages));
        add(d_q, before);
      }
    }
  }

  /// d_q of the last step; with it all products are done.
  __device__ __forceinline__ void last_d_q(const QueryStep& last, int number) {
    if (added_to_ >= 0) sm80::end_turn(accumulators_, added_to_);
    QueryGradient d_q;
    start_d_q(d_q, number - 1);
    ptx::wgmma_wait<0>();
    add(d_q, last);
    if (added_to_ >= 0) sm80::end_turn(accumulators_, added_to_);
  }

  /// [64 keys × 64 queries] = the group's keys in `keys` · a part of `queries`ᵀ.
  __device__ __forceinline__ void start_scores(Scores& s, const typename S::Keys& keys,
                                               const typename S::Queries& queries, int part) const {
    ptx::wgmma_fence();
    start_rows<T>(s[0], keys.rows_from(kGroupRows * group_), queries.rows_from(kPart * part));
    ptx::wgmma_commit();
  }
  __device__ __forceinline__ static void finish_scores(Scores& s, Scores& d_p) {
    ptx::wgmma_wait<0>();
    ptx::hold(s[0]);
    ptx::hold(d_p[0]);
  }

  /// p and d_s, rounded, from products.
  __device__ __forceinline__ void weigh(Scores& s, Scores& d_p, const QueryStep& step, int stage,
                                        int part, Operands& operands) const {
    const int i0 = step.visit.begin, j0 = block_.j0;
    const float* lse = memory_.scalars(stage) + kPart * part;
    const sm80::ScorePart<T, 1, kPart / 8> scores(p_, block_.sequence, block_.b, step.h,
                                                  j0 + 16 * warp_, i0 + kPart * part,
                                                  {lse, lse + C.queries});
    unsigned kept = ~0u;
    if constexpr (C.extras) {
      kept = scores.apply_extras(s, d_p);
    } else {
      scores.subtract_delta(d_p);
    }
    if (!all_visible(p_, block_.sequence, {i0, i0 + C.queries}, {j0, j0 + C.keys})) {
      scores.hide_positions(s);
    }
    if (!step.visit.full) scores.hide_blocks(s);
    scores.finish(s, d_p, C.extras ? 1.0f : p_.scale * kLog2e, kept, operands);
  }

  /// d_v [64 × D] += pᵀ d_O, d_k [64 × D] += d_sᵀ Q; d_s to shared memory, for both consumers'
  /// d_q. At D = 128 registers have room for p only: d_s is read from there.
  __device__ __forceinline__ void start_key_gradients(const Operands& operands, int stage, int part,
                                                      sm80::KeyGradient<C>& d_k,
                                                      sm80::KeyGradient<C>& d_v) const {
    const auto q = memory_.q(stage).rows_from(kPart * part);
    const auto d_o = memory_.d_o(stage).rows_from(kPart * part);
    const typename S::Scores d_s = memory_.d_s(stage);
    if constexpr (!Traits::kKeepsScores) {
      store_operand(d_s, 16 * warp_, kPart * part, operands.d_s, lane_id_anew());
      ptx::proxy_fence();
    }
    ptx::wgmma_fence();
    start_registers<T>(d_v[0], operands.weights[0], d_o);
    if constexpr (Traits::kKeepsScores) {
      start_registers<T>(d_k[0], operands.d_s[0], q);
      ptx::wgmma_commit();
      store_operand(d_s, 16 * warp_, kPart * part, operands.d_s, lane_id_anew());
      ptx::proxy_fence();
    } else {
      ptx::sync_group(kBackwardGroupBarrier + group_, kGroupThreads);
      start_mixed<kPart / 16, T>(d_k[0],
                                 d_s.rows_from(kGroupRows * group_).columns_from(kPart * part), q);
      ptx::wgmma_commit();
    }
  }

  /// While scores are under way that were started later.
  __device__ __forceinline__ static void finish_key_gradients(sm80::KeyGradient<C>& d_k,
                                                              sm80::KeyGradient<C>& d_v) {
    ptx::wgmma_wait<1>();
    ptx::hold(d_k[0]);
    ptx::hold(d_v[0]);
  }

  /// This consumer's half of d_q = d_s K of a step, once both consumers' d_s is there.
  __device__ __forceinline__ void start_d_q(QueryGradient& d_q, int number) const {
    const int stage = number % C.stages;
    ptx::mbarrier_wait(memory_.d_s_full(stage), phase(number));
    ptx::wgmma_fence();
    if constexpr (Traits::kParts == 1) {
      start_across<T>(d_q[0], memory_.d_s(stage),
                      memory_.k().columns_from(S::kQueryWarpDims * group_));
    } else {
      start_across<T>(d_q[0], memory_.d_s(stage).columns_from(kPart * group_), memory_.k());
    }
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void add(QueryGradient& d_q, const QueryStep& step) {
    ptx::hold(d_q[0]);
    if (accumulators_.data == nullptr) return;
    const int index = step.h * accumulators_.tiles +
                      sm80::query_tile(p_, block_.sequence, block_.b, step.visit.begin, C.queries);
    if (accumulators_.turns != nullptr) {
      added_to_ = index * S::kWarps + warp_;
      sm80::wait_for_turn(accumulators_, added_to_, step.turn, block_.number);
    }
    sm80::add_d_q<C>(accumulators_, index, 0, d_q, thread_anew());
  }

  /// The group has read Q, d_O and scalars of a stage.
  __device__ __forceinline__ void release(int stage) const {
    ptx::mbarrier_arrive_warp(memory_.empty(stage));
  }

  __device__ __forceinline__ void clear_keys(const typename S::Keys& tile) const {
    clear_unused(tile, block_.area.keys.end - block_.j0, block_.listed);
  }
  __device__ __forceinline__ void clear_queries(const typename S::Queries& tile,
                                                const QueryStep& step) const {
    clear_unused(tile, block_.sequence.q_len - step.visit.begin, step.visit.listed);
  }
  template <typename Tile>
  __device__ __forceinline__ void clear_unused(const Tile& tile, int used, unsigned listed) const {
    constexpr unsigned kAll = (1u << (Tile::kRows / kGranule)) - 1;
    if (!copied_ && (used < Tile::kRows || (listed & kAll) != kAll)) clear(tile, used, listed);
  }
  /// Rows from `used` on, and of unlisted granules, become zero.
  template <typename Tile>
  __device__ __forceinline__ void clear(const Tile& tile, int used, unsigned listed) const {
    unsigned thread = threadIdx.x;
    ptx::make_opaque(thread);  // the rare path
#pragma unroll 1
    for (int x = static_cast<int>(thread % kGroupThreads); x < Tile::kRows * Tile::kRowVectors;
         x += kGroupThreads) {
      const int row = x / Tile::kRowVectors;
      if (row >= used || (listed >> (row / kGranule) & 1u) == 0) {
        ptx::store_shared_16(tile.at(row, x % Tile::kRowVectors), 0, 0, 0, 0);
      }
    }
    ptx::proxy_fence();
    ptx::sync_group(kBackwardGroupBarrier + group_, kGroupThreads);
  }

  const Parameters& p_;
  const QueryAccumulators& accumulators_;
  const bool copied_;
  const BackwardBlock& block_;
  BackwardMemory<C> memory_;
  const int group_, warp_;
  int added_to_ = -1;  ///< What the warp has added to without having passed on the turn.
};

}  // namespace tessera::cuda::sm90
