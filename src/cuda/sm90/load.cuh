// Rows of a head into shared memory, by the copy engine or by the threads of a warpgroup.
#pragma once

#include <cuda.h>

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/tile/group_products.cuh"

namespace tessera::cuda::sm90 {

/// Where a tile's rows come from: `origin` is the first token of the sequence, `row` the first row
/// within it, of which `count` are used; `listed` has a bit for each granule of them.
struct RowsPlace {
  int b, h;
  int origin, row, count;
  unsigned listed = ~0u;
};

/// Asks the copy engine for a tile, which arrives at `barrier`. One thread calls it. Rows that are
/// not used come along.
template <typename Tile>
__device__ __forceinline__ void ask_for_tile(const Tile& tile, std::uint32_t barrier,
                                             const CUtensorMap& map, const RowsPlace& place) {
  ptx::mbarrier_arrive_expect(barrier, Tile::kBytes);
#pragma unroll
  for (int panel = 0; panel < Tile::kCols / Tile::kPanel; ++panel) {
    ptx::tma_load(tile.base + panel * Tile::kRows * Tile::kPitch, &map, barrier,
                  panel * Tile::kPanel, place.origin + place.row, place.h, place.b);
  }
}

/// Copies a tile, which then arrives at `barrier`; what is not used becomes zero. A warpgroup calls
/// it, with its threads' numbers; `group_barrier` is one of its own.
template <typename T, typename Tile>
__device__ __forceinline__ void copy_tile(const Tile& tile, std::uint32_t barrier, const Rows& rows,
                                          const RowsPlace& place, int columns, int group_barrier,
                                          unsigned thread) {
  load_tile<kGroupThreads>(tile, row_of<const T>(rows, place.b, place.h, place.origin),
                           rows.stride_s, rows.vectors, place.row, place.count, columns,
                           place.listed, thread);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  ptx::proxy_fence();
  ptx::sync_group(group_barrier, kGroupThreads);
  if (thread == 0) ptx::mbarrier_arrive(barrier);
}

}  // namespace tessera::cuda::sm90
