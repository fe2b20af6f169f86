// How the forward kernels on mma.sync go through the keys of a tile of queries.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/sequence.cuh"
#include "cuda/algo/uniform.cuh"
#include "cuda/ptx/opaque.cuh"
#include "cuda/ptx/shared.cuh"

namespace tessera::cuda::sm80 {

/// Goes through the key tiles where there is no block mask.
template <int kTile>
class EveryTile {
 public:
  __device__ EveryTile(const Parameters&, int, int, Range, Range keys)
      : at_(uniform(keys.begin / kTile * kTile)), end_(uniform(keys.end)) {}
  __device__ bool next(Visit& visit) {
    if (at_ >= end_) return false;
    visit.begin = at_;
    at_ += kTile;
    return true;
  }

 private:
  int at_, end_;
};

/// Calls load(visit, stage), which starts and commits copies, for every tile of kTile keys of
/// `walk`, one step ahead; then, behind a barrier, first() in the first step and attend(begin,
/// positions, blocks, stage) in those that the warp's rows see: `positions` and `blocks` say
/// whether some elements do not count because of causal mask, window and used length, or of the
/// block mask. `rows`: the block's, `warp_row` the warp's first of kWarpRows among them.
template <int kTile, int kStages, int kWarpRows, bool kListed, typename Walk, typename Load,
          typename First, typename Attend>
__device__ __forceinline__ void for_each_key_tile(const Parameters& p, const Sequence& sequence,
                                                  const Range& rows, int warp_row, Walk& walk,
                                                  Load load, First first_step, Attend attend) {
  // Step −1 has nothing to compute yet: the first copies start in the loop like all others, which
  // keeps the code short. Blocks of short sequences run it from a cold instruction cache.
  Visit now, next;
  bool more = true;
  for (int step = -1; more; ++step) {
    now = next;
    more = walk.next(next);
    next.begin = uniform(next.begin);
    if (kListed) next.full = uniform(next.full);
    if (step >= 0) {
      ptx::cp_async_wait<0>();
      __syncthreads();
    }
    if (more) load(next, (step + 1) % kStages);
    if (step < 0) continue;
    if (step == 0) first_step();
    // A warp leaves out tiles that its own rows do not see, and tests those that they see in
    // part.
    int first = rows.begin + warp_row;
    if constexpr (kListed) ptx::make_opaque(first);  // not worth registers between steps
    const int last = min(first + kWarpRows, rows.end);
    const Range seen = visible_keys(p, sequence, first, last);
    if (first >= last || now.begin + kTile <= seen.begin || now.begin >= seen.end) continue;
    const Range whole = common_keys(p, sequence, first, last);
    attend(now.begin, now.begin < whole.begin || now.begin + kTile > whole.end, now.full == 0,
           step % kStages);
  }
}

}  // namespace tessera::cuda::sm80
