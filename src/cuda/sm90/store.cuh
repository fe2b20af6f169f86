// What a block stores besides its accumulators.
#pragma once

#include "cuda/algo/score.cuh"
#include "cuda/algo/sequence.cuh"
#include "cuda/tile/store_rows.cuh"

namespace tessera::cuda::sm90 {

/// Stores what queries give that see no key: zeros, of the size of Bits, and the sink as lse. One
/// warp's work.
template <int kRows, typename Bits>
__device__ inline void store_unattended(const Parameters& p, const TileIndex& tile,
                                        const Sequence& sequence, bool sinks) {
  if (threadIdx.x >= kWarpSize) return;
  const int lane = static_cast<int>(threadIdx.x);
  const int end = min(tile.begin + kRows, sequence.q_rows);
  const float sink = sinks && p.sink != nullptr ? p.sink[tile.h] : minus_infinity();
#pragma unroll 1
  for (int i = tile.begin; i < end; ++i) {
    Bits* row = row_of<Bits>(p.o, tile.b, tile.h, sequence.q_begin + i);
    for (int column = lane; column < p.head_dim_v; column += kWarpSize) row[column] = 0;
    if (lane == 0 && p.lse.data != nullptr) {
      *scalar_of(p.lse, tile.b, tile.h, sequence.q_begin + i) =
          i < sequence.q_len ? sink : minus_infinity();
    }
  }
}

}  // namespace tessera::cuda::sm90
