// How d_k, d_v and d_q leave a backward kernel, and the kernels that follow it.
#pragma once

#include "cuda/algo/config.hpp"
#include "cuda/algo/tile_order.cuh"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/reduce.cuh"
#include "cuda/sm80/backward_tiles.cuh"

namespace tessera::cuda::sm80 {

/// A warp's share of d_k and d_v in registers.
template <BackwardConfig C>
using KeyGradient = float[BackwardTiles<C>::kWarpKeys / 16][BackwardTiles<C>::kWarpDims / 8][4];

inline constexpr int kStoreBarrier = 15;

/// Stores d_k and d_v of a tile. K and V are no longer needed: their memory is used. The first
/// BackwardTiles::kThreads threads of the block call it.
template <BackwardConfig C>
__device__ __forceinline__ void store_key_gradients(const Parameters& p, const Gradients& g,
                                                    const TileIndex& tile, const Sequence& sequence,
                                                    const unsigned char* shared,
                                                    const KeyGradient<C>& d_k,
                                                    const KeyGradient<C>& d_v) {
  using S = BackwardTiles<C>;
  using T = typename S::T;
  const std::uint32_t base = ptx::shared_address(shared);
  const typename S::Keys k{base}, v{base + S::Keys::kBytes};
  const int warp = uniform(static_cast<int>(threadIdx.x / kWarpSize));
  const int row = warp / C.warps_q * S::kWarpKeys;
  const int column = warp % C.warps_q * S::kWarpDims;
  store_accumulator<T>(k, row, column, d_k, p.scale);
  store_accumulator<T>(v, row, column, d_v, p.keep_scale);
  ptx::sync_group(kStoreBarrier, S::kThreads);
  if (g.d_k.data != nullptr) {
    store_tile<S::kThreads>(k, row_of<T>(g.d_k, tile.b, tile.h, sequence.kv_begin), g.d_k.stride_s,
                            g.d_k.vectors, tile.begin, sequence.kv_rows, p.head_dim);
  }
  if (g.d_v.data != nullptr) {
    store_tile<S::kThreads>(v, row_of<T>(g.d_v, tile.b, tile.h, sequence.kv_begin), g.d_v.stride_s,
                            g.d_v.vectors, tile.begin, sequence.kv_rows, p.head_dim_v);
  }
}

/// Adds the part-th columns of a warp's share of d_q to a query tile's accumulators.
template <BackwardConfig C, int kR, int kC>
__device__ __forceinline__ void add_d_q(const QueryAccumulators& accumulators, int tile, int part,
                                        const float (&d_q)[kR][kC][4], unsigned thread) {
  using S = BackwardTiles<C>;
  float* to =
      accumulators.data + static_cast<std::int64_t>(tile) * S::kQueryTileFloats + 4 * thread;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const int element = (r * S::kQueryParts + part) * kC + c;
      ptx::reduce_add_16(to + element * (4 * S::kThreads), d_q[r][c]);
    }
  }
}

/// Visits element [r][c] of both gradients of this thread and where it lies in partial result x.
template <BackwardConfig C, typename Visit>
__device__ __forceinline__ void for_each_of_partial(const TileOrder& order, int x, Visit visit) {
  using S = BackwardTiles<C>;
  constexpr int kC = S::kWarpDims / 8;
  constexpr int kElements = S::kWarpKeys / 16 * kC;
  auto* const partial =
      reinterpret_cast<float4*>(order.partials + static_cast<std::int64_t>(x) * S::kPartialFloats) +
      thread_anew();
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    visit(e / kC, e % kC, partial[e * S::kThreads], partial[(kElements + e) * S::kThreads]);
  }
}

template <BackwardConfig C>
__device__ __forceinline__ void keep_partial(const TileOrder& order, int x,
                                             const KeyGradient<C>& d_k, const KeyGradient<C>& d_v) {
  for_each_of_partial<C>(order, x, [&](int r, int c, float4& k, float4& v) {
    k = {d_k[r][c][0], d_k[r][c][1], d_k[r][c][2], d_k[r][c][3]};
    v = {d_v[r][c][0], d_v[r][c][1], d_v[r][c][2], d_v[r][c][3]};
  });
}

/// d_k and d_v of a tile in pieces: one block for each tile (natural order), or for each item, of
/// which those with first pieces work. Threads as in the kernel before.
template <typename ConfigOf>
__global__ void __launch_bounds__(BackwardTiles<ConfigOf::value>::kThreads)
    sm80_backward_merge(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                        const __grid_constant__ TileOrder order, int tiles) {
  constexpr BackwardConfig C = ConfigOf::value;
  using S = BackwardTiles<C>;
  if constexpr (!S::kHasCode) return;
  extern __shared__ __align__(128) unsigned char shared[];
  int x = static_cast<int>(blockIdx.x);
  if (order.items == nullptr) {
    x *= order.splits;
  } else if (x >= order.counts->split || order.items[x].piece != 0) {
    return;
  }
  const TileItem item = item_of_block(order, x);
  TileIndex tile;
  const int place = tile_of_block<Side::keys>(p, item.tile, tiles, tile.h);
  if (!locate_tile<Side::keys>(p, place, C.keys, tile)) return;

  KeyGradient<C> d_k = {}, d_v = {};
#pragma unroll 1
  for (int piece = 0; piece < item.pieces; ++piece) {
    for_each_of_partial<C>(order, x + piece, [&](int r, int c, const float4& k, const float4& v) {
      d_k[r][c][0] += k.x;
      d_k[r][c][1] += k.y;
      d_k[r][c][2] += k.z;
      d_k[r][c][3] += k.w;
      d_v[r][c][0] += v.x;
      d_v[r][c][1] += v.y;
      d_v[r][c][2] += v.z;
      d_v[r][c][3] += v.w;
    });
  }
  store_key_gradients<C>(p, g, tile, sequence_of(p, tile.b), shared, d_k, d_v);
}

/// d_q from its accumulators: one block for each query tile of each head, threads as above.
template <typename ConfigOf>
__global__ void __launch_bounds__(BackwardTiles<ConfigOf::value>::kThreads)
    sm80_backward_d_q(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                      const __grid_constant__ QueryAccumulators accumulators) {
  constexpr BackwardConfig C = ConfigOf::value;
  using S = BackwardTiles<C>;
  if constexpr (!S::kHasCode) return;
  using T = typename S::T;
  extern __shared__ __align__(128) unsigned char shared[];
  TileIndex tile;
  tile.h = static_cast<int>(blockIdx.x) / accumulators.tiles;
  const int x = static_cast<int>(blockIdx.x) % accumulators.tiles;
  if (!locate_tile<Side::queries>(p, x, C.queries, tile)) return;
  const Sequence sequence = sequence_of(p, tile.b);

  const std::int64_t index = static_cast<std::int64_t>(tile.h) * accumulators.tiles +
                             query_tile(p, sequence, tile.b, tile.begin, C.queries);
  const auto* from = reinterpret_cast<const float4*>(accumulators.data) +
                     index * (S::kQueryTileFloats / 4) + threadIdx.x;
  constexpr int kColumnTiles = S::kQueryWarpDims / 8;
  float d_q[S::kQueryRowTiles][kColumnTiles][4];
#pragma unroll
  for (int r = 0; r < S::kQueryRowTiles; ++r) {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const float4 element = from[(r * kColumnTiles + c) * S::kThreads];
      d_q[r][c][0] = element.x;
      d_q[r][c][1] = element.y;
      d_q[r][c][2] = element.z;
      d_q[r][c][3] = element.w;
    }
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const typename S::Queries rows{ptx::shared_address(shared)};
  store_accumulator<T>(rows, warp % S::kQueryRows * S::kQueryRowTiles * 16,
                       warp / S::kQueryRows * S::kQueryWarpDims, d_q, p.scale);
  __syncthreads();
  store_tile<S::kThreads>(rows, row_of<T>(g.d_q, tile.b, tile.h, sequence.q_begin), g.d_q.stride_s,
                          g.d_q.vectors, tile.begin, sequence.q_rows, p.head_dim);
}

/// What follows a backward kernel: pieces are merged, d_q leaves its accumulators.
template <BackwardConfig C>
Status finish_backward(const Parameters& p, const Gradients& g,
                       const QueryAccumulators& accumulators, const TileOrder& order,
                       const Tiles& tiles, cudaStream_t stream) {
  using S = BackwardTiles<C>;
  const bool in_order = order.items != nullptr;
  if (in_order || order.splits > 1) {
    const std::int64_t merging = in_order ? tiles.most_split() : tiles.count;
    if (Status status =
            launch("sm80_backward_merge", sm80_backward_merge<Constant<C>>, merging, S::kThreads,
                   2 * S::Keys::kBytes, stream, p, g, order, static_cast<int>(tiles.per_head));
        !status.ok()) {
      return status;
    }
  }
  if (g.d_q.data == nullptr) return {};
  const std::int64_t blocks = static_cast<std::int64_t>(accumulators.tiles) * p.heads_q;
  return launch("sm80_backward_d_q", sm80_backward_d_q<Constant<C>>, blocks, S::kThreads,
                S::Queries::kBytes, stream, p, g, accumulators);
}

}  // namespace tessera::cuda::sm80
