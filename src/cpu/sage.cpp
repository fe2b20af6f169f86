// Driver of the quantised forward pass: quantises, then shares the tiles of all heads and sequences
// out over the threads.
#include <algorithm>
#include <bit>
#include <numeric>

#include "core/format.hpp"
#include "cpu/query_tiles.hpp"
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
        operands_(problem_, isa_, layout_),
        tiles_(problem_, blocking_, isa_.scratch_floats(blocking_, operands_.words()), 1, layout_) {
  }

  std::string config() const override {
    return formatted("{} words={}x{}", to_string(blocking_, *isa_.exact), operands_.words(),
                     isa_.ints_per_word);
  }
  std::size_t workspace_bytes() const override { return layout_.bytes(); }

  Status run(const Arguments& arguments) const override {
    const TileGrid grid = tiles_.grid(arguments);
    operands_.quantise(arguments, grid);
    tiles_.for_each<SageTile>(
        arguments, grid, [&](const QueryTile& at, SageTile& tile, float* scratch) {
          operands_.attach(arguments, at.b, at.h, at.sequence, at.rows.begin, tile);
          isa_.forward(tile, scratch);
        });
    return {};
  }

 private:
  Problem problem_;
  const SageIsa& isa_;
  Blocking blocking_;
  WorkspaceLayout layout_;
  SageOperands operands_;
  QueryTiles tiles_;
};

}  // namespace

std::unique_ptr<Kernel> make_sage(const Problem& problem, const SageIsa& isa) {
  return std::make_unique<SageKernel>(problem, isa);
}

}  // namespace tessera::cpu
