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
  /// `scratch_floats`: what a worker needs for the tiles in its `slots`. Both references are kept.
  QueryTiles(const Problem& problem, const Blocking& blocking, std::int64_t scratch_floats,
             int slots, WorkspaceLayout& layout)
      : problem_(problem),
        blocking_(blocking),
        grid_(layout.add((TileGrid::sequences(problem) + 1) * sizeof(std::int64_t))),
        scratch_bytes_(scratch_floats * 4),
        ranges_bytes_((blocking.tile_q * 4 + 63) / 64 * 64),
        worker_bytes_(scratch_bytes_ + 2 * slots * ranges_bytes_),
        workers_(layout.add(problem.threads * worker_bytes_)) {}

  TileGrid grid(const Arguments& arguments) const {
    return {problem_, arguments.inputs, blocking_,
            reinterpret_cast<std::int64_t*>(arguments.workspace + grid_)};
  }

  /// visit(QueryTile, Tile&, scratch) for every tile that has used rows; the others get zeros. What
  /// Tile has of ForwardTile is filled in.
  template <class Tile, class Visit>
  void for_each(const Arguments& arguments, const TileGrid& grid, Visit visit) const {
    for_each_task(*arguments.executor, problem_.threads, tasks(grid),
                  [&](int worker, std::int64_t index) {
                    std::byte* memory = worker_memory(arguments, worker);
                    QueryTile at;
                    Tile tile;
                    if (!describe(arguments, grid, index, memory, 0, at, tile)) return;
                    visit(at, tile, reinterpret_cast<float*>(memory));
                  });
  }

  /// work(TileSource, scratch) for every worker, whose source describes the same tiles and calls
  /// complete(QueryTile, ForwardTile&) for each.
  template <class Complete, class Work>
  void for_each_worker(const Arguments& arguments, const TileGrid& grid, Complete complete,
                       Work work) const {
    for_each_share(*arguments.executor, problem_.threads, tasks(grid),
                   [&](int worker, auto&& next_index) {
                     std::byte* memory = worker_memory(arguments, worker);
                     auto next = [&](int slot, ForwardTile& tile) {
                       for (std::int64_t index; (index = next_index()) >= 0;) {
                         QueryTile at;
                         tile = {};
                         if (!describe(arguments, grid, index, memory, slot, at, tile)) continue;
                         complete(at, tile);
                         return true;
                       }
                       return false;
                     };
                     const auto call = [](void* context, int slot, ForwardTile& tile) {
                       return (*static_cast<decltype(next)*>(context))(slot, tile);
                     };
                     work(TileSource{&next, call}, reinterpret_cast<float*>(memory));
                   });
  }

 private:
  std::int64_t tasks(const TileGrid& grid) const { return grid.total_tiles() * problem_.heads_q; }

  std::byte* worker_memory(const Arguments& arguments, int worker) const {
    return arguments.workspace + workers_ + worker * worker_bytes_;
  }

  /// Fills in tile number `index`; false if it has no used rows.
  bool describe(const Arguments& arguments, const TileGrid& grid, std::int64_t index,
                std::byte* memory, int slot, QueryTile& at, ForwardTile& tile) const {
    const DropoutStream dropout(problem_.dropout_p, arguments.inputs.seed, arguments.inputs.offset);
    const std::int64_t heads = problem_.heads_q;
    const std::int64_t b = grid.sequence_of_tile(index / heads);
    const std::int64_t tiles = grid.tiles(b);
    const std::int64_t within = index - grid.tiles_before(b) * heads;
    at = {b, within / tiles, grid.sequence(b), {}};
    // Later tiles see more keys under a causal mask: first, so that the last tasks to be handed out
    // are the light ones.
    at.rows = grid.rows(at.sequence, tiles - 1 - within % tiles);
    zero_unused_rows(problem_, arguments.outputs, b, at.h, at.sequence, at.rows);
    if (at.rows.used == 0) return false;
    std::byte* ranges = memory + scratch_bytes_ + 2 * slot * ranges_bytes_;
    describe_forward_tile(problem_, arguments, blocking_, dropout, b, at.h, at.sequence, at.rows,
                          reinterpret_cast<std::int32_t*>(ranges),
                          reinterpret_cast<std::int32_t*>(ranges + ranges_bytes_), tile);
    return true;
  }

  const Problem& problem_;
  const Blocking& blocking_;
  std::size_t grid_;
  std::int64_t scratch_bytes_;
  std::int64_t ranges_bytes_;  ///< Of the first keys of a tile's rows, or the last ones.
  std::int64_t worker_bytes_;
  std::size_t workers_;
};

}  // namespace tessera::cpu
