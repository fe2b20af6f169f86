// From a problem to the tiles of a kernel.
#pragma once

#include "core/problem.hpp"
#include "cuda/algo/tile_order.hpp"

namespace tessera::cuda {

/// Tiles of `rows` queries (every query head) or keys (every key head). `blocks` of them run at a
/// time on a multiprocessor.
Tiles tiles_of(const Problem& problem, Side side, int rows, int blocks);

/// Whether order_tiles puts a problem's tiles in order: with a block mask, unless sequences are
/// packed or blocks have to start in natural order because they take turns.
bool takes_order(const Problem& problem);

}  // namespace tessera::cuda
