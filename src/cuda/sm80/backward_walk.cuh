// The way of a backward block through the query tiles that see its keys.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/uniform.cuh"
#include "cuda/sm80/backward_variants.hpp"
#include "cuda/tile/products.cuh"

namespace tessera::cuda::sm80 {

/// A query tile of one head.
struct QueryStep {
  int exists = 0;
  int h = 0;
  int turn = 0;  ///< How many blocks add to its d_q before this one, where blocks take turns.
  Visit visit;
};

/// What a block goes through: queries of the heads [h_begin, h_end) of sequence b that see keys.
struct QueryArea {
  int b, h_begin, h_end;
  Range keys, queries;
  bool in_turns;
};

using cuda::uniform;
__device__ __forceinline__ QueryArea uniform(const QueryArea& area) {
  return {uniform(area.b),    uniform(area.h_begin), uniform(area.h_end),
          uniform(area.keys), uniform(area.queries), area.in_turns};
}

/// The query tiles that a block visits: those of the area's queries, ascending, of each head, and
/// with a block mask only those that it lists. Lies in shared memory, since its registers would be
/// the products'; warp 0 goes ahead and tells the others.
template <BackwardConfig C>
class QueryWalk {
 public:
  /// Warp 0: finds step 0.
  __device__ void start(const Parameters& p, const Sequence& sequence, const QueryArea& area) {
    if (p.block_mask.row_offsets != nullptr) {
      lanes_[lane_id()] = {area.h_begin, Walk(p, area.b, area.h_begin, area.keys, area.queries)};
      find_listed(p, sequence, area, 0);
    } else {
      const bool exists = !area.queries.empty() && area.h_begin < area.h_end;
      keep(p, sequence, area, 0, {exists, area.h_begin, 0, {first_of(area)}});
    }
  }

  /// Warp 0: finds step `number` after the one before it. The others see it after a barrier.
  __device__ void find(const Parameters& p, const Sequence& sequence, const QueryArea& area,
                       int number) {
    if (p.block_mask.row_offsets != nullptr) {
      find_listed(p, sequence, area, number);
      return;
    }
    QueryStep step = at(number - 1);
    step.visit.begin += C.queries;
    if (step.visit.begin >= area.queries.end) {
      step.visit.begin = first_of(area);
      step.exists = step.exists && ++step.h < area.h_end;
    }
    keep(p, sequence, area, number, step);
  }

  __device__ QueryStep at(int number) const { return steps_[number % kKept]; }

 private:
  using Walk = BlockWalk<Side::keys, C.queries>;
  struct Lane {
    int h;
    Walk walk;
  };

  __device__ static int first_of(const QueryArea& area) {
    return area.queries.begin / C.queries * C.queries;
  }

  __device__ void find_listed(const Parameters& p, const Sequence& sequence, const QueryArea& area,
                              int number) {
    Lane lane = lanes_[lane_id()];
    QueryStep step;
    while (lane.h < area.h_end && !area.queries.empty() && !step.exists) {
      step.h = lane.h;
      step.exists = lane.walk.next(step.visit);
      if (!step.exists && ++lane.h < area.h_end) {
        lane.walk = Walk(p, area.b, lane.h, area.keys, area.queries);
      }
    }
    lanes_[lane_id()] = lane;
    keep(p, sequence, area, number, step);
  }

  __device__ void keep(const Parameters& p, const Sequence& sequence, const QueryArea& area,
                       int number, QueryStep step) {
    if (area.in_turns && step.exists) step.turn = turn_of(p, sequence, area, step);
    if (lane_id() == 0) steps_[number % kKept] = step;
  }

  /// Blocks take turns with the last key tile first: those of the key tiles behind the block's that
  /// visit the query tile come before it.
  __device__ static int turn_of(const Parameters& p, const Sequence& sequence,
                                const QueryArea& area, const QueryStep& step) {
    const Range queries{step.visit.begin, min(step.visit.begin + C.queries, sequence.q_len)};
    if (p.block_mask.row_offsets != nullptr) {
      const Range behind{area.keys.begin + C.keys, sequence.kv_len};
      return BlockWalk<Side::queries, C.keys>(p, area.b, step.h, queries, behind).count();
    }
    const Range seen = visible_keys(p, sequence, queries.begin, queries.end);
    return (seen.end - 1) / C.keys - area.keys.begin / C.keys;
  }

  static constexpr int kKept = 4;  ///< This step, the two after it, and one that may be still read.
  Lane lanes_[kWarpSize];
  QueryStep steps_[kKept];
};

}  // namespace tessera::cuda::sm80
