// How blocks take turns in adding to d_q, so that sums have the same order in every run.
//
// The blocks that visit a query tile add to it in the order of their key tiles, last first. Every
// warp has a part of d_q's registers of its own, and a counter for it: it waits for the same warp
// of other blocks only, and lets the next one go on when its additions have had the products of a
// step to arrive.
//
// A block's number comes from a ticket, so whoever is waited for has started. How many come before
// follows from the mask's rows, who comes from its transpose; a mask in device memory has not been
// checked, and where they disagree somebody would wait for ever. So who waits long also looks
// whether all blocks that started before have ended, and then goes on.
#pragma once

#include "cuda/ptx/reduce.cuh"
#include "cuda/sm80/backward_variants.hpp"
#include "cuda/tile/products.cuh"

namespace tessera::cuda::sm80 {

/// Number of this block, from which its tile follows. Where blocks take turns, numbers go out last
/// first, in the order in which blocks start.
__device__ __forceinline__ int block_number(const QueryAccumulators& accumulators,
                                            unsigned char* shared) {
  if (accumulators.turns == nullptr) return static_cast<int>(blockIdx.x);
  auto* const ticket = reinterpret_cast<volatile int*>(shared);
  if (threadIdx.x == 0) *ticket = atomicAdd(accumulators.ticket, 1);
  __syncthreads();
  const int number = static_cast<int>(gridDim.x) - 1 - *ticket;
  __syncthreads();
  return number;
}

/// Waits until `turn` blocks have added to what counter `at` stands for.
__device__ __forceinline__ void wait_for_turn(const QueryAccumulators& accumulators, int at,
                                              int turn, int block) {
  constexpr int kPatience = 4096;
  const auto all_before_have_ended = [&] {
    for (int other = block + 1; other < static_cast<int>(gridDim.x); ++other) {
      if (ptx::load_acquire(accumulators.ended + other) == 0) return false;
    }
    return true;
  };
  if (lane_id() == 0) {
    for (int asked = 1; ptx::load_acquire(accumulators.turns + at) < turn; ++asked) {
      if (asked % kPatience == 0 && all_before_have_ended()) break;
    }
  }
  __syncwarp();
}

/// Makes visible what the warp has added, then counts it.
__device__ __forceinline__ void end_turn(const QueryAccumulators& accumulators, int at) {
  __threadfence();
  __syncwarp();
  if (lane_id() == 0) ptx::add_release(accumulators.turns + at, 1);
}

/// The block has added all that it will: after a barrier of those threads that add.
__device__ __forceinline__ void note_end(const QueryAccumulators& accumulators, int block) {
  if (threadIdx.x == 0) ptx::add_release(accumulators.ended + block, 1);
}

/// The same where all threads of the block add. All call it.
__device__ __forceinline__ void end_turns(const QueryAccumulators& accumulators, int block) {
  __syncthreads();
  note_end(accumulators, block);
}

}  // namespace tessera::cuda::sm80
