// In which order a kernel's blocks take the tiles of a problem with a block mask, and in how many
// pieces: its tiles may have very different work, which the host does not know.
//
//   1. Tiles with more than a block's fair share of all work, in pieces of at most that share, each
//      piece for a block of its own. Their partial results are merged by a kernel that follows.
//   2. Other long tiles, longest first.
//   3. All others, set by set, longest first in each. A set is neighbouring tiles whose blocks read
//      the same rows, together little enough for L2.
//
// A tile has the number that its block would have in a grid in natural order (tile_of_block).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/algo/parameters.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// What one block does: a piece of a tile.
struct TileItem {
  int tile;
  short piece, pieces;
};

struct TileOrder {
  struct Counts {
    int items;
    int split;  ///< Items [0, split) are pieces of tiles that are merged.
  };
  Counts* counts = nullptr;
  TileItem* items = nullptr;  ///< Null: natural order.
  int splits = 1;             ///< Pieces of every tile in natural order.
  float* partials = nullptr;  ///< Of item x at x · (size of a kernel's partial result).
};

/// The tiles of a kernel.
struct Tiles {
  Side side;
  int rows;               ///< Of a tile.
  std::int64_t per_head;  ///< tiles_per_head
  std::int64_t count;     ///< Of all heads.
  std::int64_t set;       ///< Tiles of a set.
  std::int64_t slots;     ///< Blocks that run at a time.

  std::int64_t most_items() const { return count + slots; }
  std::int64_t most_split() const { return 2 * slots; }

  /// Memory for the order, in front of the partial results.
  std::size_t order_bytes() const {
    const std::size_t bytes = sizeof(TileOrder::Counts) + sizeof(TileItem) * most_items();
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  TileOrder order_in(std::byte* memory) const {
    TileOrder order;
    order.counts = reinterpret_cast<TileOrder::Counts*>(memory);
    order.items = reinterpret_cast<TileItem*>(memory + sizeof(TileOrder::Counts));
    order.partials = reinterpret_cast<float*>(memory + order_bytes());
    return order;
  }

 private:
  static constexpr std::size_t kAlignment = 64;
};

/// Fills in the order for a problem that is not packed. Blocks beyond counts->items have nothing to
/// do; there are most_items() at most, and most_split() partial results.
Status order_tiles(const Tiles& tiles, const Parameters& p, const TileOrder& order,
                   cudaStream_t stream);

}  // namespace tessera::cuda
