// The warpgroups that multiply. See forward.cuh.
#pragma once

#include "cuda/algo/score_tile.cuh"
#include "cuda/algo/softmax.cuh"
#include "cuda/algo/uniform.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/consumer_side.cuh"
#include "cuda/sm90/forward_traits.cuh"
#include "cuda/sm90/store.cuh"
#include "cuda/tile/products.cuh"

namespace tessera::cuda::sm90 {

/// One warpgroup: 64 rows of each of the block's tiles of queries.
template <ForwardConfig C>
class Consumer : ConsumerSide<C> {
  using Base = ConsumerSide<C>;
  using Traits = KernelTraits<C>;
  using T = typename Traits::T;
  using Rules = ScoreTile<T, 1, Traits::kScoreTiles>;
  using Softmax = OnlineSoftmax<T, 1>;
  using Scores = typename Rules::Scores;
  using Weights = typename Rules::Weights;

 public:
  /// `group`: 0 for the first consumer, which is the block's second warpgroup.
  /// `copies`: tensors are not the copy engine's.
  /// `packing`: of packed configs.
  __device__ Consumer(const Parameters& p, const ForwardMaps& maps, bool copies,
                      const SharedMemory<C>& shared, int group, const Packing* packing = nullptr)
      : Base(p, shared, group),
        maps_(maps),
        packing_(packing),
        copied_(C.extras && copies),
        scored_(C.extras && Rules::needed(p)) {}

  /// Each step starts the product of the next scores, then that of the last weights, and computes
  /// the next weights while the latter runs.
  __device__ __forceinline__ void run() {
    if (C.turns && group_ == Traits::kConsumers - 1) pass_turn();
    for (Message now = receive(); !now.none(); now = receive()) {
      const GroupWork work = receive_work();
      Registers r;
      Softmax softmax(factor());
      if constexpr (C.passes_over) {
        if (!work.sees(now)) {
          pass_over(now, true);
          let_go_of_q();
          store(r, softmax, work);
          continue;
        }
      }
      ptx::wgmma_fence();
      start_scores(r);
      finish_scores<0>(r);
      release_k(now);
      let_go_of_q();
      bool special = asks_more(now, work);
      begin_weights(r, softmax, now, work, special);
      bool settled = softmax.settled();
      Message next;
      while (now.has(Message::more)) {
        next = receive();
        if (C.passes_over && !work.sees(next)) break;
        if constexpr (C.turns) wait_turn();
        ptx::wgmma_fence();
        start_scores(r);
        start_output(r, now, work, special);
        if constexpr (C.turns) pass_turn();
        special = asks_more(next, work);
        finish_scores<1>(r);
        if constexpr (Traits::kTestsSums) {
          weigh_by_sums(r, softmax, settled, next, work, special);
        } else {
          weigh_by_maxima(r, softmax, next, work, special);
        }
        now = next;
      }
      ptx::wgmma_fence();
      start_output(r, now, work, special);
      finish_output(r);
      if (C.passes_over && now.has(Message::more)) pass_over(next, false);
      store(r, softmax, work);
    }
    if constexpr (Traits::kHoldsQ) ptx::bulk_wait_read();
  }

 private:
  using Base::group_, Base::k_, Base::p_, Base::q_, Base::shared_, Base::v_;
  using Base::receive, Base::receive_work, Base::release, Base::release_k, Base::wait_turn,
      Base::pass_turn, Base::pass_over;
  using typename Base::GroupWork;

  /// What the products read and write.
  struct Registers {
    Scores s;
    Weights weights;
    float o[1][Traits::kOutTiles][4] = {};
  };

  /// The weights of a work's first scores.
  __device__ __forceinline__ void begin_weights(Registers& r, Softmax& softmax,
                                                const Message& visit, const GroupWork& work,
                                                bool special) const {
    float sum[2];
    score(r.s, visit, work, special);
    softmax.settle(r.s);
    softmax.exponentiate(r.s, sum);
    softmax.add(sum);
    softmax.pack(r.s, r.weights);
  }

  /// Those of further scores, while the product of the last weights is under way.
  __device__ __forceinline__ void weigh_by_maxima(Registers& r, Softmax& softmax,
                                                  const Message& visit, const GroupWork& work,
                                                  bool special) {
    float sum[2], by[2];
    release_k(visit);
    score(r.s, visit, work, special);
    if (softmax.prepare(r.s, by)) {
      wait_output(r);
      rescale(r, by);
    }
    softmax.exponentiate(r.s, sum);
    softmax.add(sum);
    finish_output(r);
    softmax.pack(r.s, r.weights);
  }

  /// The same; scores of which a weight grows too large are gone by then. K is there until none do.
  __device__ __forceinline__ void weigh_by_sums(Registers& r, Softmax& softmax, bool& settled,
                                                const Message& visit, const GroupWork& work,
                                                bool special) {
    float sum[2], by[2];
    score(r.s, visit, work, special);
    if (!settled) {
      softmax.settle(r.s);
      settled = softmax.settled();
    }
    softmax.exponentiate(r.s, sum);
    finish_output(r);
    softmax.pack(r.s, r.weights);
    if (!softmax.trusts(sum)) {
      multiply_again(r.s);
      softmax.mask_as(r.weights, r.s);
      softmax.raise(r.s, by);
      rescale(r, by);
      softmax.exponentiate(r.s, sum);
      softmax.pack(r.s, r.weights);
    }
    softmax.add(sum);
    release_k(visit);
  }

  /// The warp's rows of S = Q Kᵀ once more, without the other warps.
  __device__ __forceinline__ void multiply_again(Scores& s) const {
    const unsigned thread = thread_anew();
    const int lane = static_cast<int>(thread % kWarpSize);
    const int row = static_cast<int>(thread % kGroupThreads / kWarpSize) * kOutputRows;
    const typename Traits::QTile q = shared_.q(q_.stage, group_);
    const typename Traits::KTile k = shared_.k(k_.stage);
#pragma unroll
    for (int n = 0; n < Traits::kScoreTiles; ++n) {
#pragma unroll
      for (int at = 0; at < 4; ++at) s[0][n][at] = 0;
    }
#pragma unroll 1
    for (int step = 0; step < C.head_dim / 16; ++step) {
      multiply_rows_step<T>(s, q, row, k, 0, step, lane);
    }
  }

  /// S [64 × tile_n] = Q Kᵀ.
  __device__ __forceinline__ void start_scores(Registers& r) {
    start_rows<T>(r.s[0], shared_.q(q_.stage, group_), shared_.k(k_.stage));
    ptx::wgmma_commit();
  }

  template <int kPending>
  __device__ __forceinline__ static void finish_scores(Registers& r) {
    ptx::wgmma_wait<kPending>();
    ptx::hold(r.s[0]);
  }

  /// O [64 × Dv] += P V.
  __device__ __forceinline__ void start_output(Registers& r, const Message& visit,
                                               const GroupWork& work, bool special) {
    const Sequence& sequence = work.sequence;
    ptx::mbarrier_wait(shared_.v_full(v_.stage), v_.parity);
    if (special) {
      const bool behind = visit.begin() + C.tile_n > sequence.kv_len &&
                          sequence.kv_begin + sequence.kv_len < p_.seq_kv;
      if (behind || !visit.has(Message::whole)) clear_unused(visit, sequence.kv_len);
    }
    start_registers<T>(r.o[0], r.weights[0], shared_.v(v_.stage));
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ static void wait_output(Registers& r) {
    ptx::wgmma_wait<0>();
    ptx::hold(r.o[0]);
  }

  /// Then V may be overwritten.
  __device__ __forceinline__ void finish_output(Registers& r) {
    wait_output(r);
    release(shared_.v_empty(v_.stage));
    v_.advance();
  }

  /// Rows of V behind the last used key and of unlisted blocks may hold anything: they become zero,
  /// so that 0 · v is 0. All consumers write the same zeros.
  __device__ __forceinline__ void clear_unused(const Message& visit, int kv_len) const {
    using Tile = typename Traits::VTile;
    const Tile v = shared_.v(v_.stage);
    unsigned thread = threadIdx.x;
    ptx::make_opaque(thread);  // the rare path
#pragma unroll 1
    for (int x = static_cast<int>(thread % kGroupThreads); x < Tile::kRows * Tile::kRowVectors;
         x += kGroupThreads) {
      const int row = x / Tile::kRowVectors;
      const bool used = visit.begin() + row < kv_len &&
                        (visit.has(Message::whole) || (visit.listed >> (row / kGranule) & 1u) != 0);
      if (!used) ptx::store_shared_16(v.at(row, x % Tile::kRowVectors), 0, 0, 0, 0);
    }
    ptx::proxy_fence();
    ptx::sync_group(kGroupBarrier + group_, kGroupThreads);
  }

  /// Whether positions or the block mask hide any key of the tile from any row.
  __device__ __forceinline__ static bool asks_more(const Message& visit, const GroupWork& work) {
    constexpr int kAll = Message::full | Message::whole;
    return (visit.word & kAll) != kAll || visit.begin() < work.whole.begin ||
           visit.begin() + C.tile_n > work.whole.end;
  }

  /// From q · k to what the softmax takes.
  __device__ __forceinline__ void score(Scores& s, const Message& visit, const GroupWork& work,
                                        bool special) const {
    const Rules rules(p_, work.sequence, work.tile.b, work.tile.h, first_row(work));
    if constexpr (C.extras) {
      if (scored_) rules.score(s, visit.begin());
    }
    if (!special) return;
    if (!visit.has(Message::full)) rules.mask_blocks(s, visit.begin());
    if (visit.begin() < work.whole.begin || visit.begin() + C.tile_n > work.whole.end) {
      rules.mask_positions(s, visit.begin());
    }
  }
  /// The query at the top of warp 0 of the block, counted as the warps' rows follow one another.
  __device__ __forceinline__ int first_row(const GroupWork& work) const {
    if constexpr (C.packed) {  // queries begin anew every packing rows, whole warps
      const int warp = uniform(static_cast<int>(threadIdx.x / kWarpSize));
      const int row = kOutputRows * warp;
      return (row & (packing_->rows - 1)) - row;
    }
    return work.tile.begin - (group_ + 1) * kGroupRows;
  }
  __device__ __forceinline__ float factor() const { return scored_ ? 1.0f : p_.scale * kLog2e; }

  __device__ __forceinline__ static void rescale(Registers& r, const float (&by)[2]) {
#pragma unroll
    for (int n = 0; n < Traits::kOutTiles; ++n) {
#pragma unroll
      for (int at = 0; at < 4; ++at) r.o[0][n][at] *= by[at / 2];
    }
  }

  /// The Q of the work before, once the copy engine has read o from there.
  __device__ __forceinline__ void let_go_of_q() {
    if constexpr (Traits::kHoldsQ) {
      if (uniform(static_cast<int>(held_)) != 0) {
        ptx::bulk_wait_read();
        release(shared_.q_empty(q_.stage ^ 1, group_));
      }
      held_ = false;
    }
  }

  /// Divides by the row sums, and stores o and lse of every row that exists.
  __device__ __forceinline__ void store(const Registers& r, const Softmax& softmax,
                                        const GroupWork& work) {
    if constexpr (C.packed) {
      store_part(r, softmax, work);
      return;
    }
    const int warp = uniform(static_cast<int>(threadIdx.x % kGroupThreads / kWarpSize));
    const int lane = static_cast<int>(threadIdx.x % kWarpSize);
    const float sink = C.extras && p_.sink != nullptr ? p_.sink[work.tile.h] : minus_infinity();
    const int first = work.tile.begin + kOutputRows * warp;
    std::uint32_t words[2][Traits::kOutTiles];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first + 8 * half + lane / 4;
      auto [scale, lse] = softmax.finish(0, half, sink);
      const bool used = i < work.sequence.q_len;
      if (!used) lse = minus_infinity();
      if (p_.lse.data != nullptr && lane % 4 == 0 && i < work.sequence.q_rows) {
        *scalar_of(p_.lse, work.tile.b, work.tile.h, work.sequence.q_begin + i) = lse;
      }
#pragma unroll
      for (int n = 0; n < Traits::kOutTiles; ++n) {
        const float(&x)[4] = r.o[0][n];
        words[half][n] = used ? ptx::pack<T>(x[2 * half] * scale, x[2 * half + 1] * scale) : 0;
      }
    }
    if constexpr (Traits::kHoldsQ) {
      ptx::sync_group(kGroupBarrier + group_, kGroupThreads);  // all have read Q
      held_ = true;
      q_.advance();
      // Behind the last row another tile's may follow, in a packed tensor another sequence's.
      const int rows = work.sequence.q_rows;
      if (!copied_ && (first + kOutputRows <= rows || (!p_.varlen && rows == p_.seq_q))) {
        store_box(words, work, first, warp);
        return;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first + 8 * half + lane / 4;
      T* row = i < work.sequence.q_rows
                   ? row_of<T>(p_.o, work.tile.b, work.tile.h, work.sequence.q_begin + i)
                   : nullptr;
      store_row(row, words[half], p_.head_dim_v, !C.extras || p_.o.vectors);
    }
  }

  /// The warp's rows of o, through shared memory, where its rows of Q were, to global memory.
  __device__ __forceinline__ void store_box(const std::uint32_t (&words)[2][Traits::kOutTiles],
                                            const GroupWork& work, int first, int warp) const {
    using Tile = SharedTile<T, kGroupRows, C.head_dim_v>;
    const int lane = static_cast<int>(threadIdx.x % kWarpSize);
    const Tile tile{shared_.q(q_.stage ^ 1, group_).base};
#pragma unroll
    for (int n = 0; n < Traits::kOutTiles; n += 2) {
      ptx::stmatrix_x4(tile.at(kOutputRows * warp + lane % 16, n + lane / 16), words[0][n],
                       words[1][n], words[0][n + 1], words[1][n + 1]);
    }
    ptx::proxy_fence();
    __syncwarp();
    if (lane == 0) {
#pragma unroll
      for (int column = 0; column < C.head_dim_v; column += Tile::kPanel) {
        ptx::tma_store(&maps_.o, tile.rows_from(kOutputRows * warp).columns_from(column).base,
                       column, work.sequence.q_begin + first, work.tile.h,
                       p_.varlen ? 0 : work.tile.b);
      }
      ptx::bulk_commit();
    }
  }

  /// Results of one part of the keys, of the rows of this group of heads.
  __device__ __forceinline__ void store_part(const Registers& r, const Softmax& softmax,
                                             const GroupWork& work) const {
    const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
    const int lane = thread % kWarpSize;
    const int heads_end = (work.tile.h / p_.group + 1) * p_.group;
    const Partials& partials = packing_->partials;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = kOutputRows * (thread / kWarpSize) + 8 * half + lane / 4;
      const int h = work.tile.h + (group_ * kGroupRows + row) / packing_->rows;
      const int i = row & (packing_->rows - 1);
      const auto [scale, lse] = softmax.finish(0, half, minus_infinity());
      if (h >= heads_end || i >= work.sequence.q_rows) continue;
      const std::int64_t at =
          work.split * partials.rows + (std::int64_t{work.tile.b} * p_.heads_q + h) * p_.seq_q + i;
      const bool used = i < work.sequence.q_len;
      if (lane % 4 == 0) partials.lse[at] = used ? lse : minus_infinity();
      float* o = partials.o + at * p_.head_dim_v + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < Traits::kOutTiles; ++n) {
        const float(&x)[4] = r.o[0][n];
        if (8 * n < p_.head_dim_v) {
          *reinterpret_cast<float2*>(o + 8 * n) = {x[2 * half] * scale, x[2 * half + 1] * scale};
        }
      }
    }
  }

  const ForwardMaps& maps_;
  const Packing* packing_;
  const bool copied_;
  const bool scored_;  ///< Scores take more than a scale.
  bool held_ = false;  ///< Q of the work before.
};

}  // namespace tessera::cuda::sm90
