// Forward driver: packs, then shares the tiles of all heads and sequences out over the threads.
#include "cpu/query_tiles.hpp"
#include "cpu/strips.hpp"

namespace tessera::cpu {
namespace {

class ForwardKernel final : public Kernel {
 public:
  ForwardKernel(const Problem& problem, const Isa& isa)
      : problem_(problem),
        isa_(isa),
        blocking_(choose_blocking(problem, isa)),
        strips_(problem_, isa_, blocking_, layout_),
        tiles_(problem_, blocking_, isa_.forward_scratch_floats(blocking_),
               isa_.forward_all == nullptr ? 1 : TileSource::kSlots, layout_) {}

  std::string config() const override { return to_string(blocking_, isa_); }
  std::size_t workspace_bytes() const override { return layout_.bytes(); }

  Status run(const Arguments& arguments) const override {
    const TileGrid grid = tiles_.grid(arguments);
    strips_.pack(arguments, grid);
    const auto attach = [&](const QueryTile& at, ForwardTile& tile) {
      strips_.attach(arguments, at.b, at.h / problem_.group(), at.sequence, tile);
    };
    if (isa_.forward_all != nullptr) {
      tiles_.for_each_worker(arguments, grid, attach, isa_.forward_all);
    } else {
      tiles_.for_each<ForwardTile>(arguments, grid,
                                   [&](const QueryTile& at, ForwardTile& tile, float* scratch) {
                                     attach(at, tile);
                                     isa_.forward(tile, scratch);
                                   });
    }
    return {};
  }

 private:
  Problem problem_;
  const Isa& isa_;
  Blocking blocking_;
  WorkspaceLayout layout_;
  PackedStrips strips_;
  QueryTiles tiles_;
};

}  // namespace

std::unique_ptr<Kernel> make_forward(const Problem& problem, const Isa& isa) {
  if (are_few_rows(problem, isa)) return make_few_rows(problem, isa);
  return std::make_unique<ForwardKernel>(problem, isa);
}

}  // namespace tessera::cpu
