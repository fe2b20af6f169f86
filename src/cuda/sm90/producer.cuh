// The warpgroup that loads: it decides what the block does. See forward.cuh.
#pragma once

#include "cuda/algo/uniform.cuh"
#include "cuda/sm90/pipeline.cuh"

namespace tessera::cuda::sm90 {

/// A work that the schedule has located, before anybody knows whether it has keys to visit.
struct TileWork {
  Work work;
  Range rows, keys;
};

template <auto C>
__device__ __forceinline__ TileWork tile_work(const Parameters& p, const TileIndex& tile) {
  TileWork of;
  const int begin = uniform(max(tile.begin, 0));
  of.work = {{uniform(tile.b), uniform(tile.h), begin}, uniform(sequence_of(p, tile.b))};
  Sequence& sequence = of.work.sequence;
  if (tile.begin < 0) {  // the rows behind it are the next tile's
    sequence.q_rows = min(sequence.q_rows, uniform(tile.begin) + C.tile_m);
    sequence.q_len = min(sequence.q_len, sequence.q_rows);
  }
  of.rows = {begin, min(begin + C.tile_m, sequence.q_len)};
  of.keys = {0, 0};
  if (!of.rows.empty()) {
    of.keys = uniform(visible_keys(p, of.work.sequence, of.rows.begin, of.rows.end));
  }
  return of;
}

/// `Loader` fills tiles: load_q, load_k and load_v, each of which has the tile's full barrier count
/// one arrival and what is to come.
template <auto C, typename Loader>
class Producer {
  using Traits = KernelTraits<C>;

 public:
  __device__ Producer(const Parameters& p, const Schedule& schedule, const SharedMemory<C>& shared,
                      const Loader& loader)
      : p_(p), schedule_(schedule), shared_(shared), loader_(loader), works_(schedule) {}

  /// Loads what the block's works need, and says that there is nothing more.
  __device__ void run() {
    run([](const BlockWorks&) {});
  }

  /// The same; before a work is loaded announce(works) may ask for the number of the one after.
  template <typename Announce>
  __device__ void run(Announce announce) {
    for (int x = works_.next(); x >= 0; x = works_.next()) {
      announce(works_);
      int number = x;
      if constexpr (Traits::kShares) number = work_of_share(schedule_.last, x);
      const TileIndex tile = locate_work<C>(p_, schedule_, number);
      if (tile.b >= 0) {
        TileWork of = tile_work<C>(p_, tile);
        if constexpr (Traits::kShares) take_share<C>(schedule_.last, x, of.work, of.keys);
        load(of.work, of.rows, of.keys);
      }
    }
    finish();
  }

  /// Loads what a work needs: the keys of `keys` that the mask lists for queries `rows`.
  __device__ void load(const Work& work, const Range& rows, const Range& keys) {
    BlockWalk<Side::queries, C.tile_n> walk(p_, work.tile.b, work.tile.h, rows, keys);
    Visit now, next;
    if (!walk.next(now)) {
      loader_.store_unattended(work);
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

  /// Says that there is nothing more.
  __device__ void finish() {
    ptx::mbarrier_wait(shared_.k_empty(k_ring_.stage), k_ring_.parity ^ 1);
    if (thread() == 0) {
      shared_.write(k_ring_.stage, Message{});
      ptx::mbarrier_arrive(shared_.k_full(k_ring_.stage));
    }
  }

 private:
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
    loader_.load_k(shared_, stage, work, visit);
    k_ring_.advance();
  }

  __device__ __forceinline__ void load_v(const Work& work, const Visit& visit) {
    const int stage = v_ring_.stage;
    ptx::mbarrier_wait(shared_.v_empty(stage), v_ring_.parity ^ 1);
    loader_.load_v(shared_, stage, work, visit);
    v_ring_.advance();
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
      loader_.load_q(shared_, stage, group, work);
    }
    q_ring_.advance();
  }

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }

  const Parameters& p_;
  const Schedule& schedule_;
  const SharedMemory<C>& shared_;
  const Loader loader_;
  BlockWorks works_;
  Ring<Traits::kKStages> k_ring_;
  Ring<Traits::kVStages> v_ring_;
  Ring<C.q_stages> q_ring_;
};

}  // namespace tessera::cuda::sm90
