// How a block finds its tile and piece (tile_order.hpp).
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/tile_order.hpp"

namespace tessera::cuda {

/// What block x does; a tile below 0: nothing.
__device__ inline TileItem item_of_block(const TileOrder& order, int x) {
  if (order.items == nullptr) {
    const auto splits = static_cast<short>(order.splits);
    return {x / splits, static_cast<short>(x % splits), splits};
  }
  if (x >= order.counts->items) return {-1, 0, 1};
  return order.items[x];
}

/// Head and place within it (locate_tile) of tile `number`: query heads of one key head are side by
/// side, so that their blocks share K and V.
template <Side kSide>
__device__ inline int tile_of_block(const Parameters& p, int number, int per_head, int& h) {
  if (kSide == Side::keys) {
    h = number / per_head;
    return number % per_head;
  }
  const int rest = number / p.group;
  h = rest / per_head * p.group + number % p.group;
  return rest % per_head;
}

/// The tile of queries of this block, in a grid of equal numbers of tiles of every query head;
/// false if there is no such tile.
__device__ inline bool locate_block(const Parameters& p, int tile_m, TileIndex& tile) {
  const int per_head = static_cast<int>(gridDim.x) / p.heads_q;
  const int block = static_cast<int>(blockIdx.x);
  const int place = tile_of_block<Side::queries>(p, block, per_head, tile.h);
  return locate_tile<Side::queries>(p, place, tile_m, tile);
}

/// What piece `item.piece` of an outer tile's pieces has of the inner axis. Pieces are cut where
/// the longest of the tile's lines has equal numbers of entries. Called by whole warps.
template <Side kOuter, int kInnerTile>
__device__ inline Range piece_range(const Parameters& p, int b, int h, Range outer,
                                    const TileItem& item, Range range) {
  if (item.pieces == 1) return range;
  const MaskLines lines = mask_lines<kOuter>(p, b, h);
  const int line = outer.begin / lines.line_size + static_cast<int>(threadIdx.x % kWarpSize);
  std::int64_t first = 0;
  int count = 0;
  if (line * lines.line_size < outer.end && line < lines.lines) {
    const std::int64_t entries = p.block_mask.entries;
    first = min(max(lines.offsets[line], std::int64_t{0}), entries);
    count = static_cast<int>(min(max(lines.offsets[line + 1], first), entries) - first);
  }
  const int longest = __reduce_max_sync(~0u, count);
  const int lane = __ffs(__ballot_sync(~0u, count == longest)) - 1;
  first = __shfl_sync(~0u, first, lane);
  const auto cut = [&](int piece) {
    const std::int64_t entry = first + static_cast<std::int64_t>(longest) * piece / item.pieces;
    return clamp_to(lines.blocks[entry], 0, lines.lines_blocks) * lines.block_size / kInnerTile *
           kInnerTile;
  };
  if (longest == 0) return item.piece == 0 ? range : Range{0, 0};
  if (item.piece > 0) range.begin = max(range.begin, cut(item.piece));
  if (item.piece + 1 < item.pieces) range.end = min(range.end, cut(item.piece + 1));
  return range;
}

}  // namespace tessera::cuda
