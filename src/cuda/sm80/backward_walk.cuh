// The way of a backward block through the query tiles that see its keys.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/sm80/backward.hpp"
#include "cuda/tile/products.cuh"

namespace tessera::cuda::sm80 {

/// A query tile of one head.
struct QueryStep {
  bool exists = false;
  int h = 0;
  Visit visit;
};

/// The query tiles that a block visits: those of `queries`, ascending, of each head of the group,
/// and with a block mask only those that it lists. Lies in shared memory, since its registers would
/// be the products'; warp 0 goes ahead and tells the others.
template <BackwardConfig C>
class QueryWalk {
 public:
  /// Warp 0: finds step 0.
  __device__ void start(const Parameters& p, int b, int h_kv, Range keys, Range queries) {
    const int h = h_kv * p.group;
    if (p.block_mask.row_offsets != nullptr) {
      lanes_[lane_id()] = {h, Walk(p, b, h, keys, queries)};
      find_listed(p, b, (h_kv + 1) * p.group, keys, queries, 0);
    } else if (lane_id() == 0) {
      steps_[0] = {!queries.empty(), h, {queries.begin / C.queries * C.queries}};
    }
  }

  /// Warp 0: finds step `number` after the one before it. The others see it after a barrier.
  __device__ void find(const Parameters& p, int b, int h_kv, Range keys, Range queries,
                       int number) {
    const int h_end = (h_kv + 1) * p.group;
    if (p.block_mask.row_offsets != nullptr) {
      find_listed(p, b, h_end, keys, queries, number);
    } else if (lane_id() == 0) {
      QueryStep step = at(number - 1);
      step.visit.begin += C.queries;
      if (step.visit.begin >= queries.end) {
        step.visit.begin = queries.begin / C.queries * C.queries;
        step.exists = step.exists && ++step.h < h_end;
      }
      steps_[number % kKept] = step;
    }
  }

  __device__ QueryStep at(int number) const { return steps_[number % kKept]; }

 private:
  using Walk = BlockWalk<Side::keys, C.queries>;
  struct Lane {
    int h;
    Walk walk;
  };

  __device__ void find_listed(const Parameters& p, int b, int h_end, Range keys, Range queries,
                              int number) {
    Lane lane = lanes_[lane_id()];
    QueryStep step;
    while (lane.h < h_end && !queries.empty() && !step.exists) {
      step.h = lane.h;
      step.exists = lane.walk.next(step.visit);
      if (!step.exists && ++lane.h < h_end) lane.walk = Walk(p, b, lane.h, keys, queries);
    }
    lanes_[lane_id()] = lane;
    if (lane_id() == 0) steps_[number % kKept] = step;
  }

  static constexpr int kKept = 4;  ///< This step, the two after it, and one that may be still read.
  Lane lanes_[kWarpSize];
  QueryStep steps_[kKept];
};

}  // namespace tessera::cuda::sm80
