// Forward driver: shares the tiles of all heads and sequences out over the threads.
#include <algorithm>

#include "cpu/attention_kernel.hpp"
#include "cpu/strips.hpp"

namespace tessera::cpu {
namespace {

class ForwardKernel final : public Kernel {
 public:
  ForwardKernel(const Problem& problem, const Isa& isa)
      : problem_(problem),
        isa_(isa),
        blocking_(choose_blocking(problem, isa)),
        strips_(problem_, isa_, blocking_, layout_) {
    grid_ = layout_.add((TileGrid::sequences(problem_) + 1) * sizeof(std::int64_t));
    worker_floats_ = isa_.forward_scratch_floats(blocking_);
    worker_bytes_ = worker_floats_ * 4 + 2 * ((blocking_.tile_q * 4 + 63) / 64 * 64);
    workers_ = layout_.add(problem_.threads * worker_bytes_);
  }

  std::string config() const override { return to_string(blocking_, isa_); }
  std::size_t workspace_bytes() const override { return layout_.bytes(); }

  Status run(const Arguments& arguments) const override {
    const TileGrid grid(problem_, arguments.inputs, blocking_,
                        reinterpret_cast<std::int64_t*>(arguments.workspace + grid_));
    const DropoutStream dropout(problem_.dropout_p, arguments.inputs.seed, arguments.inputs.offset);
    strips_.pack(arguments, grid);
    const std::int64_t heads = problem_.heads_q;
    for_each_task(*arguments.executor, problem_.threads, grid.total_tiles() * heads,
                  [&](int worker, std::int64_t index) {
                    const std::int64_t b = grid.sequence_of_tile(index / heads);
                    const std::int64_t tiles = grid.tiles(b);
                    const std::int64_t within = index - grid.tiles_before(b) * heads;
                    // Later tiles see more keys under a causal mask: first, so that the last
                    // tasks to be handed out are the light ones.
                    const std::int64_t tile = tiles - 1 - within % tiles;
                    run_tile(arguments, grid, dropout, worker, b, within / tiles, tile);
                  });
    return {};
  }

 private:
  void run_tile(const Arguments& arguments, const TileGrid& grid, const DropoutStream& dropout,
                int worker, std::int64_t b, std::int64_t h, std::int64_t index) const {
    const Sequence s = grid.sequence(b);
    const TileRows rows = grid.rows(s, index);
    zero_unused_rows(problem_, arguments.outputs, b, h, s, rows);
    if (rows.used == 0) return;

    std::byte* memory = arguments.workspace + workers_ + worker * worker_bytes_;
    auto* key_begin = reinterpret_cast<std::int32_t*>(memory + worker_floats_ * 4);
    auto* key_end = key_begin + (blocking_.tile_q + 15) / 16 * 16;
    ForwardTile tile;
    describe_forward_tile(problem_, arguments, blocking_, dropout, b, h, s, rows, key_begin,
                          key_end, tile);
    strips_.attach(arguments, b, h / problem_.group(), s, tile);
    isa_.forward(tile, reinterpret_cast<float*>(memory));
  }

  Problem problem_;
  const Isa& isa_;
  Blocking blocking_;
  WorkspaceLayout layout_;
  PackedStrips strips_;
  std::size_t grid_ = 0;
  std::int64_t worker_floats_ = 0;
  std::int64_t worker_bytes_ = 0;
  std::size_t workers_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> make_forward(const Problem& problem, const Isa& isa) {
  if (are_few_rows(problem, isa)) return make_few_rows(problem, isa);
  return std::make_unique<ForwardKernel>(problem, isa);
}

}  // namespace tessera::cpu
