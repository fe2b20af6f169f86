// The warpgroup that loads. See forward.cuh.
#pragma once

#include "cuda/algo/uniform.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/pipeline.cuh"
#include "cuda/sm90/store.cuh"

namespace tessera::cuda::sm90 {

template <ForwardConfig C>
class Producer {
  using Traits = ForwardTraits<C>;
  using T = typename Traits::T;

 public:
  /// `copies`: the threads copy, all of them; else one thread asks the copy engine.
  __device__ Producer(const Parameters& p, const TensorMaps& maps, const Schedule& schedule,
                      bool copies, const SharedMemory<C>& shared)
      : p_(p),
        maps_(maps),
        schedule_(schedule),
        works_(schedule),
        copies_(C.extras && copies),
        shared_(shared) {}

  /// Loads what the block's works need, and says that there is nothing more.
  __device__ void run() {
    for (int x = works_.next(); x >= 0; x = works_.next()) {
      const TileIndex tile = locate_work<C>(p_, schedule_, x);
      if (tile.b >= 0) load_work(tile);
    }
    ptx::mbarrier_wait(shared_.k_empty(k_ring_.stage), k_ring_.parity ^ 1);
    if (thread() == 0) {
      shared_.write(k_ring_.stage, Message{});
      ptx::mbarrier_arrive(shared_.k_full(k_ring_.stage));
    }
  }

 private:
  __device__ void load_work(const TileIndex& tile) {
    const Work work{{uniform(tile.b), uniform(tile.h), uniform(tile.begin)},
                    uniform(sequence_of(p_, tile.b))};
    const Range rows{tile.begin, min(tile.begin + C.tile_m, work.sequence.q_len)};
    Range keys{0, 0};
    if (!rows.empty()) keys = uniform(visible_keys(p_, work.sequence, rows.begin, rows.end));
    BlockWalk<Side::queries, C.tile_n> walk(p_, tile.b, tile.h, rows, keys);
    Visit now, next;
    if (!walk.next(now)) {
      store_unattended<C.tile_m>(p_, work.tile, work.sequence, C.extras);
      return;
    }
    bool more = walk.next(next);
    load_k(work, now, more);
    load_q(work);
    while (true) {
      load_v(work, now);
      if (!more) return;
      now = next;
      more = walk.next(next);
      load_k(work, now, more);
    }
  }

  __device__ __forceinline__ void load_k(const Work& work, const Visit& visit, bool more) {
    const int stage = k_ring_.stage;
    ptx::mbarrier_wait(shared_.k_empty(stage), k_ring_.parity ^ 1);
    constexpr unsigned kAll = (1u << (C.tile_n / kGranule)) - 1;
    if (thread() == 0) {
      shared_.write(stage, Message{visit.begin | (more ? Message::more : 0) |
                                       (visit.full != 0 ? Message::full : 0) |
                                       ((visit.listed & kAll) == kAll ? Message::whole : 0),
                                   visit.listed});
    }
    load_keys(shared_.k(stage), shared_.k_full(stage), maps_.k, p_.k, work, visit, p_.head_dim);
    k_ring_.advance();
  }

  __device__ __forceinline__ void load_v(const Work& work, const Visit& visit) {
    const int stage = v_ring_.stage;
    ptx::mbarrier_wait(shared_.v_empty(stage), v_ring_.parity ^ 1);
    load_keys(shared_.v(stage), shared_.v_full(stage), maps_.v, p_.v, work, visit, p_.head_dim_v);
    v_ring_.advance();
  }

  template <typename Tile>
  __device__ __forceinline__ void load_keys(const Tile& tile, std::uint32_t barrier,
                                            const CUtensorMap& map, const Rows& rows,
                                            const Work& work, const Visit& visit, int columns) {
    load(tile, barrier, map, rows, work.tile.b, work.tile.h / p_.group, work.sequence.kv_begin,
         visit.begin, work.sequence.kv_len, columns, visit.listed);
  }

  __device__ __forceinline__ void load_q(const Work& work) {
    const int stage = q_ring_.stage;
#pragma unroll 1
    for (int group = 0; group < Traits::kConsumers; ++group) {
      ptx::mbarrier_wait(shared_.q_empty(stage, group), q_ring_.parity ^ 1);
      if (group == 0) {
        // The last consumer that has read this stage's work may still be at it: all wait for all.
        for (int other = 1; other < Traits::kConsumers; ++other) {
          ptx::mbarrier_wait(shared_.q_empty(stage, other), q_ring_.parity ^ 1);
        }
        if (thread() == 0) shared_.write(stage, work);
      }
      load(shared_.q(stage, group), shared_.q_full(stage, group), maps_.q, p_.q, work.tile.b,
           work.tile.h, work.sequence.q_begin, work.tile.begin + group * kGroupRows,
           work.sequence.q_len, p_.head_dim, ~0u);
    }
    q_ring_.advance();
  }

  /// Fills a tile with rows [row, …) of a sequence whose first token is `origin`.
  template <typename Tile>
  __device__ __forceinline__ void load(const Tile& tile, std::uint32_t barrier,
                                       const CUtensorMap& map, const Rows& rows, int b, int h,
                                       int origin, int row, int count, int columns,
                                       unsigned listed) {
    if constexpr (C.extras) {
      if (copies_) {
        load_tile<kGroupThreads>(tile, row_of<const T>(rows, b, h, origin), rows.stride_s,
                                 rows.vectors, row, count, columns, listed);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        ptx::proxy_fence();
        ptx::sync_group(kProducerBarrier, kGroupThreads);
        if (thread() == 0) ptx::mbarrier_arrive(barrier);
        return;
      }
    }
    if (thread() == 0) {
      ptx::mbarrier_arrive_expect(barrier, Tile::kBytes);
#pragma unroll
      for (int panel = 0; panel < Tile::kCols / Tile::kPanel; ++panel) {
        ptx::tma_load(tile.base + panel * Tile::kRows * Tile::kPitch, &map, barrier,
                      panel * Tile::kPanel, origin + row, h, p_.varlen ? 0 : b);
      }
    }
    __syncwarp();
  }

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }

  const Parameters& p_;
  const TensorMaps& maps_;
  const Schedule& schedule_;
  BlockWorks works_;
  const bool copies_;
  const SharedMemory<C>& shared_;
  Ring<C.stages> k_ring_, v_ring_;
  Ring<C.q_stages> q_ring_;
};

}  // namespace tessera::cuda::sm90
