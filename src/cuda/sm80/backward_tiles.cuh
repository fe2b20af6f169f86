// What of a backward kernel is known when compiling: tiles, the warps' shares, shared memory.
#pragma once

#include "cuda/algo/tile_order.cuh"
#include "cuda/sm80/backward_variants.hpp"
#include "cuda/sm80/backward_walk.cuh"
#include "cuda/tile/products.cuh"
#include "cuda/tile/shared_tile.cuh"

namespace tessera::cuda::sm80 {

/// Shared memory that a block may have on the chip that code is being generated for; 0 if several
/// chips run it (sm_80's also 8.6 and 8.9, and its PTX all later ones).
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890
inline constexpr int kChipSharedBytes = 99 * 1024;
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr int kChipSharedBytes = 227 * 1024;
#else
inline constexpr int kChipSharedBytes = 0;
#endif

template <BackwardConfig C>
struct BackwardTiles {
  using T = std::conditional_t<C.dtype == DType::f16, __half, __nv_bfloat16>;
  using Keys = SharedTile<T, C.keys, C.head_dim>;
  using Queries = SharedTile<T, C.queries, C.head_dim>;
  using Scores = SharedTile<T, C.keys, C.queries>;

  /// Whether the kernel can be chosen on this chip; if not, its body is left out.
  static constexpr bool kHasCode = kChipSharedBytes == 0 || C.suits(kChipSharedBytes);

  static constexpr int kWarps = C.warps_k * C.warps_q;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr bool kSharesWeights = C.warps_q > 1;  ///< p goes through shared memory.

  static constexpr int kWarpKeys = C.keys / C.warps_k;
  static constexpr int kWarpQueries = C.queries / C.warps_q;
  static constexpr int kWarpDims = C.head_dim / C.warps_q;

  static constexpr int kQueryRows = C.query_rows;
  static constexpr int kQueryRowTiles = C.queries / kQueryRows / 16;
  static constexpr int kQueryWarpDims = C.head_dim / (kWarps / kQueryRows);
  /// d_q is made in parts of so many columns of 16. One part needs d_s once; several keep it in
  /// registers, which only a short key tile leaves room for.
  static constexpr int kPartColumns = C.keys > 64 ? kQueryWarpDims / 16 : 1;
  static constexpr int kQueryParts = kQueryWarpDims / 16 / kPartColumns;
  static constexpr int kOtherParts = 2 * (C.warps_q - 1) * kWarpQueries / 16;
  static constexpr int kQueryTileFloats = C.queries * C.head_dim;
  static constexpr int kPartialFloats = C.partial_floats();

  static constexpr int kScalars = 2 * C.queries;  ///< lse and delta of one stage.
  static constexpr int kQueriesAt = 2 * Keys::kBytes;
  static constexpr int kScoresAt = kQueriesAt + 2 * C.stages * Queries::kBytes;
  static constexpr int kWeightsAt = kScoresAt + C.stages * Scores::kBytes;
  static constexpr int kScalarsAt = kWeightsAt + (kSharesWeights ? Scores::kBytes : 0);
  static constexpr int kWalkAt = kScalarsAt + C.stages * kScalars * 4;
  static constexpr int kBarriersAt = kWalkAt + kQueryWalkBytes;
  static constexpr int kSharedBytes = kBarriersAt + C.barrier_bytes;

  static_assert(kSharedBytes == static_cast<int>(C.shared_bytes()));
  static_assert(C.stages == 1 || C.stages == 2);
  static_assert(kThreads >= kScalars, "one thread for each scalar of a step");
  static_assert(kWarpKeys % 16 == 0 && kWarpQueries % C.warp_queries == 0 &&
                C.warp_queries % 16 == 0);
  static_assert(kWarpDims % 16 == 0 && kQueryWarpDims % 16 == 0);
};

/// Index of a query tile among those of its head: tiles of different sequences never share one.
__device__ __forceinline__ int query_tile(const Parameters& p, const Sequence& s, int b, int begin,
                                          int rows) {
  if (p.varlen) return s.q_begin / rows + b + begin / rows;
  return b * ((p.seq_q + rows - 1) / rows) + begin / rows;
}

/// The piece `item` of what the block of a key tile goes through.
template <BackwardConfig C>
__device__ inline QueryArea query_area(const Parameters& p, const Sequence& sequence,
                                       const TileIndex& tile, const TileItem& item, Range keys,
                                       bool in_turns) {
  const int h = tile.h * p.group;
  QueryArea area{tile.b, h, h + p.group, keys, {}, in_turns};
  if (keys.empty()) return area;
  area.queries = seeing_queries(p, sequence, keys.begin, keys.end);
  if (p.block_mask.row_offsets == nullptr) {
    area.h_begin = h + p.group * item.piece / item.pieces;
    area.h_end = h + p.group * (item.piece + 1) / item.pieces;
  } else if (in_turns) {
    area.queries = {0, sequence.q_len};  // what turns are counted with
  } else {
    area.queries = piece_range<Side::keys, C.queries>(p, tile.b, h, keys, item, area.queries);
  }
  return area;
}

}  // namespace tessera::cuda::sm80
