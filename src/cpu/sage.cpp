// Driver of the quantised forward pass: quantises, then shares the tiles of all heads and sequences
// out over the threads.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "cpu/sage_operands.hpp"

namespace tessera::cpu {
namespace {

/// The exact kernels' blocks; with a mean for each block of queries, tiles lie within one.
Blocking choose_sage_blocking(const Problem& problem, const SageIsa& isa) {
  Blocking b = choose_blocking(problem, *isa.exact);
  if (problem.quantization.smooth_q == SmoothQ::block) {
    const std::int64_t rows = problem.block_mask ? problem.block_q : quant::kQueryBlock;
    const auto largest =
        static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(b.tile_q)));
    b.tile_q = std::min(std::gcd(rows, quant::kQueryBlock), largest);
  }
  return b;
}

class SageKernel final : public Kernel {
 public:
  SageKernel(const Problem& problem, const SageIsa& isa)
      : problem_(problem),
        isa_(isa),
        blocking_(choose_sage_blocking(problem, isa)),
        operands_(problem_, isa_, layout_) {
    grid_ = layout_.add((TileGrid::sequences(problem_) + 1) * sizeof(std::int64_t));
    worker_floats_ = isa_.scratch_floats(blocking_, operands_.words());
    worker_bytes_ = worker_floats_ * 4 + 2 * ((blocking_.tile_q * 4 + 63) / 64 * 64);
    workers_ = layout_.add(problem_.threads * worker_bytes_);
  }

  std::string config() const override {
    return fmt::format("{} words={}x{}", to_string(blocking_, *isa_.exact), operands_.words(),
                       isa_.ints_per_word);
  }
  std::size_t workspace_bytes() const override { return layout_.bytes(); }

  Status run(const Arguments& arguments) const override {
    const TileGrid grid(problem_, arguments.inputs, blocking_,
                        reinterpret_cast<std::int64_t*>(arguments.workspace + grid_));
    const DropoutStream dropout(problem_.dropout_p, arguments.inputs.seed, arguments.inputs.offset);
    operands_.quantise(arguments, grid);
    const std::int64_t heads = problem_.heads_q;
    for_each_task(*arguments.executor, problem_.threads, grid.total_tiles() * heads,
                  [&](int worker, std::int64_t index) {
                    const std::int64_t b = grid.sequence_of_tile(index / heads);
                    const std::int64_t tiles = grid.tiles(b);
                    const std::int64_t within = index - grid.tiles_before(b) * heads;
                    // Heavy tiles first, as in the exact driver.
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
    SageTile tile;
    describe_forward_tile(problem_, arguments, blocking_, dropout, b, h, s, rows, key_begin,
                          key_end, tile);
    operands_.attach(arguments, b, h, s, rows.begin, tile);
    isa_.forward(tile, reinterpret_cast<float*>(memory));
  }

  Problem problem_;
  const SageIsa& isa_;
  Blocking blocking_;
  WorkspaceLayout layout_;
  SageOperands operands_;
  std::size_t grid_ = 0;
  std::int64_t worker_floats_ = 0;
  std::int64_t worker_bytes_ = 0;
  std::size_t workers_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> make_sage(const Problem& problem, const SageIsa& isa) {
  return std::make_unique<SageKernel>(problem, isa);
}

}  // namespace tessera::cpu
