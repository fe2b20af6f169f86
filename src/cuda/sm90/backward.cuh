// The backward pass on Hopper: wgmma, the copy engine and specialised warpgroups, after
// FlashAttention-3 (Shah et al. 2024); keys outside, queries inside.
//
// One block: one tile of 128 keys of one key head, 64 for each of two consumer warpgroups, which
// keep their d_k and d_v in registers; a third loads. It goes through the tiles of C.queries
// queries that see its keys, 64 queries (a part) at a time:
//
//   sᵀ   [64 keys × 64 queries] = K Qᵀ       f32, in registers
//   d_pᵀ [64 keys × 64 queries] = V d_Oᵀ     the same
//   pᵀ = 2^(sᵀ − lse), d_sᵀ = pᵀ (d_pᵀ − delta)     rounded to 16 bits: operands in registers;
//                                            d_sᵀ also to shared memory
//   d_v [64 keys × D] += pᵀ d_O
//   d_k [64 keys × D] += d_sᵀ Q
//   d_q [queries × D] = d_s K                over all 128 keys: half of it for each consumer
//                                            (columns at D = 128, queries at D = 64); added to f32
//                                            accumulators in the workspace
//
// Schedule of one consumer. Products run in the order in which they are started:
//
//   start s of this part
//   wait for d_v, d_k of the last part: its registers, Q and d_O are free
//   start d_p
//   wait for s, d_p; p, d_s
//   meet the other consumer; start d_q of the last step
//   start d_v, d_k
//   d_s to shared memory
//   wait for d_q; add it
//
// So d_q is a step late, and nobody waits for the other's d_s. While one consumer computes
// exponentials, the tensor cores have the other's products. (d_q under way beside s and d_p would
// take more registers than there are.)
//
// The producer walks through the mask (sm80/backward_walk.cuh), loads Q, d_O, lse and delta of two
// steps, and says with a step that does not exist that there are no more.
//
// The copy engine fills with zeros what lies beyond the tensor. Rows behind the used length that
// lie within it, and those of unlisted mask blocks, come along; consumers overwrite them with
// zeros, all with the same, since 0 · NaN is NaN. Tensors whose rows are not whole 16-byte vectors
// the producer's threads copy.
//
// How d_q is added up, in which order, and how pieces of a tile are merged: as in
// sm80/backward.cuh. Every consumer warp has the place there that a warp of an 8 × 1 grid has.
#pragma once

#include <array>

#include "cuda/algo/config.hpp"
#include "cuda/ptx/registers.cuh"
#include "cuda/sm80/backward_passes.cuh"
#include "cuda/sm80/backward_scores.cuh"
#include "cuda/sm80/backward_turns.cuh"
#include "cuda/sm90/backward.hpp"
#include "cuda/sm90/load.cuh"
#include "cuda/sm90/tensor_map.hpp"

namespace tessera::cuda::sm90 {

using sm80::QueryAccumulators;
using sm80::QueryArea;
using sm80::QueryStep;
using sm80::QueryWalk;

inline constexpr int kBackwardStages = 2;
/// Barriers: K and V, and for each stage Q, d_O, scalars, and that they are free again.
inline constexpr int kBackwardBarriers = 2 + 4 * kBackwardStages;

constexpr BackwardConfig backward_config(int head_dim, int queries) {
  BackwardConfig c{head_dim, 128, queries, 8, 1, 16, kBackwardStages, 1};
  c.query_rows = queries == 64 ? 4 : 8;
  c.barrier_bytes = kBackwardBarriers * ptx::kMbarrierBytes;
  return c;
}

/// The copy engine's view of the tensors.
struct BackwardMaps {
  CUtensorMap q, k, v, d_o;
};

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

  /// One thread calls it, before all others are let on.
  __device__ void initialise() const {
    for (int n = 0; n < kBackwardBarriers; ++n) {
      const bool of_consumers = n >= 2 + 3 * C.stages;
      ptx::mbarrier_init(barrier(n), of_consumers ? BackwardTraits<C>::kConsumerWarps : 1);
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
    __syncwarp();
    if (thread_ == 0) ptx::mbarrier_arrive(memory_.scalars_full(stage));
  }

  const Parameters& p_;
  const Gradients& g_;
  const BackwardMaps& maps_;
  const bool copies_;
  const BackwardBlock& block_;
  const BackwardMemory<C>& memory_;
  const unsigned thread_;
};

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
      if (part == 0) start_d_q(d_q, (number - 1) % C.stages);
      start_key_gradients(operands, stage, part, d_k, d_v);
      if (part == 0) {
        ptx::wgmma_wait<1>();
        add(d_q, before);
      }
    }
  }

  /// d_q of the last step; with it all products are done.
  __device__ __forceinline__ void last_d_q(const QueryStep& last, int number) {
    if (added_to_ >= 0) sm80::end_turn(accumulators_, added_to_);
    QueryGradient d_q;
    start_d_q(d_q, (number - 1) % C.stages);
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

  /// This consumer's half of d_q = d_s K, of the step before. Consumers meet first: both have
  /// written its d_s, and have read that of the step before it, whose place is written next.
  __device__ __forceinline__ void start_d_q(QueryGradient& d_q, int stage) const {
    ptx::sync_group(kBackwardMeetingBarrier, Traits::kConsumerThreads);
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
    __syncwarp();
    if (threadIdx.x % kWarpSize == 0) ptx::mbarrier_arrive(memory_.empty(stage));
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

template <typename ConfigOf>
__global__ void __launch_bounds__(BackwardTraits<ConfigOf::value>::kThreads, 1)
    sm90_backward(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                  const __grid_constant__ QueryAccumulators accumulators,
                  const __grid_constant__ TileOrder order,
                  const __grid_constant__ BackwardMaps maps, bool copies, int tiles) {
  constexpr BackwardConfig C = ConfigOf::value;
  using Traits = BackwardTraits<C>;
  extern __shared__ __align__(1024) unsigned char shared[];

  const bool in_turns = accumulators.turns != nullptr;
  const int number = uniform(sm80::block_number(accumulators, shared));
  const TileItem item = item_of_block(order, number);
  if (item.tile < 0) return;
  TileIndex tile;
  const int place = tile_of_block<Side::keys>(p, item.tile, tiles, tile.h);
  if (!locate_tile<Side::keys>(p, place, C.keys, tile)) {
    if (in_turns) sm80::end_turns(accumulators, number);
    return;
  }
  tile = {uniform(tile.b), uniform(tile.h), uniform(tile.begin)};
  BackwardBlock block{number, tile.b, tile.h, tile.begin, uniform(sequence_of(p, tile.b)), {}, 0};
  const Range keys{tile.begin, uniform(min(tile.begin + C.keys, block.sequence.kv_len))};
  block.area = uniform(sm80::query_area<C>(p, block.sequence, tile, item, keys, in_turns));
  block.listed = listed_keys(p, tile.b, tile.h, keys);

  const BackwardMemory<C> memory(shared);
  if (threadIdx.x == 0) memory.initialise();
  __syncthreads();
  if (uniform(static_cast<int>(threadIdx.x / kGroupThreads)) == Traits::kConsumers) {
    ptx::give_registers<Traits::kProducerRegisters>();
    const bool all = C.extras && copies;
    if (all || threadIdx.x < Traits::kConsumerThreads + kWarpSize) {
      BackwardProducer<C>(p, g, maps, copies, block, memory).run();
    }
  } else {
    ptx::take_registers<Traits::kConsumerRegisters>();
    sm80::KeyGradient<C> d_k = {}, d_v = {};
    BackwardConsumer<C>(p, accumulators, copies, block, memory).run(d_k, d_v);
    if (item.pieces > 1) {
      sm80::keep_partial<C>(order, number, d_k, d_v);
    } else {
      ptx::sync_group(kBackwardMeetingBarrier, Traits::kConsumerThreads);  // K and V are read
      sm80::store_key_gradients<C>(p, g, tile, block.sequence, shared, d_k, d_v);
    }
    if (in_turns) {
      ptx::sync_group(kBackwardMeetingBarrier, Traits::kConsumerThreads);
      sm80::note_end(accumulators, number);
    }
  }
}

/// Nothing if the copy engine cannot read one of the tensors.
template <BackwardConfig C>
std::optional<BackwardMaps> backward_maps(const Parameters& p, const Gradients& g) {
  const std::int64_t batch = p.varlen ? 1 : p.batch;
  if (p.seq_q == 0 || p.seq_kv == 0) return std::nullopt;
  const auto map = [&](const Rows& rows, int columns, int tokens, int heads, int box_rows) {
    return tensor_map(rows, {C.dtype, columns, tokens, heads, batch, box_rows, 64});
  };
  const auto q = map(p.q, p.head_dim, p.seq_q, p.heads_q, C.queries);
  const auto k = map(p.k, p.head_dim, p.seq_kv, p.heads_kv, C.keys);
  const auto v = map(p.v, p.head_dim_v, p.seq_kv, p.heads_kv, C.keys);
  const auto d_o = map(g.d_o, p.head_dim_v, p.seq_q, p.heads_q, C.queries);
  if (!q || !k || !v || !d_o) return std::nullopt;
  return BackwardMaps{*q, *k, *v, *d_o};
}

/// `C` without extras cannot copy: what the engine does not read is for the kernel with them.
template <BackwardConfig C>
Status enqueue_backward(const Parameters& p, const Gradients& g,
                        const QueryAccumulators& accumulators, const TileOrder& order,
                        const Tiles& tiles, cudaStream_t stream) {
  using Traits = BackwardTraits<C>;
  const std::optional<BackwardMaps> maps = backward_maps<C>(p, g);
  if constexpr (!C.extras) {
    if (!maps) {
      return enqueue_backward<C.with(C.dtype, true)>(p, g, accumulators, order, tiles, stream);
    }
  }
  const bool in_order = order.items != nullptr;
  const auto per_head = static_cast<int>(tiles.per_head);
  if (Status status = launch("sm90_backward", sm90_backward<Constant<C>>,
                             in_order ? tiles.most_items() : tiles.count * order.splits,
                             Traits::kThreads, C.shared_bytes(), stream, p, g, accumulators, order,
                             maps ? *maps : BackwardMaps{}, !maps.has_value(), per_head);
      !status.ok()) {
    return status;
  }
  return sm80::finish_backward<C>(p, g, accumulators, order, tiles, stream);
}

/// Kernels for a config: both dtypes, without and with extras.
template <BackwardConfig C>
constexpr std::array<BackwardVariant, 4> backward_variants() {
  return {BackwardVariant{C.with(DType::f16, false), enqueue_backward<C.with(DType::f16, false)>},
          BackwardVariant{C.with(DType::f16, true), enqueue_backward<C.with(DType::f16, true)>},
          BackwardVariant{C.with(DType::bf16, false), enqueue_backward<C.with(DType::bf16, false)>},
          BackwardVariant{C.with(DType::bf16, true), enqueue_backward<C.with(DType::bf16, true)>}};
}

}  // namespace tessera::cuda::sm90
