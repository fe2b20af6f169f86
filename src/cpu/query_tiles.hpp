// The query tiles of a forward pass: their memory, and how threads share them out.
#pragma once

#include <cstdint>

#include "cpu/attention_kernel.hpp"

namespace tessera::cpu {

/// A tile of queries of head h, sequence b.
struct QueryTile {
  std::int64_t b, h;
  Sequence sequence;
  TileRows rows;
};

class QueryTiles {
 public:
  /// `scratch_floats`: what the kernel needs for a tile. Both references are kept.
  QueryTiles(const Problem& problem, const Blocking& blocking, std::int64_t scratch_floats,
             WorkspaceLayout& layout)
      : problem_(problem),
        blocking_(blocking),
        grid_(layout.add((TileGrid::sequences(problem) + 1) * sizeof(std::int64_t))),
        scratch_bytes_(scratch_floats * 4),
        worker_bytes_(scratch_bytes_ + 2 * ((blocking.tile_q * 4 + 63) / 64 * 64)),
        workers_(layout.add(problem.threads * worker_bytes_)) {}

  TileGrid grid(const Arguments& arguments) const {
    return {problem_, arguments.inputs, blocking_,
            reinterpret_cast<std::int64_t*>(arguments.workspace + grid_)};
  }

  /// visit(QueryTile, Tile&, scratch) for every tile that has used rows; the others get zeros. What
  /// Tile has of ForwardTile is filled in.
  template <class Tile, class Visit>
  void for_each(const Arguments& arguments, const TileGrid& grid, Visit visit) const {
    const DropoutStream dropout(problem_.dropout_p, arguments.inputs.seed, arguments.inputs.offset);
    const std::int64_t heads = problem_.heads_q;
    for_each_task(*arguments.executor, problem_.threads, grid.total_tiles() * heads,
                  [&](int worker, std::int64_t index) {
                    const std::int64_t b = grid.sequence_of_tile(index / heads);
                    const std::int64_t tiles = grid.tiles(b);
                    const std::int64_t within = index - grid.tiles_before(b) * heads;
                    QueryTile at{b, within / tiles, grid.sequence(b), {}};
                    // Later tiles see more keys under a causal mask: first, so that the last
                    // tasks to be handed out are the light ones.
                    at.rows = grid.rows(at.sequence, tiles - 1 - within % tiles);
                    zero_unused_rows(problem_, arguments.outputs, b, at.h, at.sequence, at.rows);
                    if (at.rows.used == 0) return;

                    std::byte* memory = arguments.workspace + workers_ + worker * worker_bytes_;
                    auto* key_begin = reinterpret_cast<std::int32_t*>(memory + scratch_bytes_);
                    auto* key_end = key_begin + (blocking_.tile_q + 15) / 16 * 16;
                    Tile tile;
                    describe_forward_tile(problem_, arguments, blocking_, dropout, b, at.h,
                                          at.sequence, at.rows, key_begin, key_end, tile);
                    visit(at, tile, reinterpret_cast<float*>(memory));
                  });
  }

 private:
  const Problem& problem_;
  const Blocking& blocking_;
  std::size_t grid_;
  std::int64_t scratch_bytes_;
  std::int64_t worker_bytes_;
  std::size_t workers_;
};

}  // namespace tessera::cpu
