#include "cuda/sm80/forward.hpp"

#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/parameters.hpp"
#include "cuda/host/tiles.hpp"

namespace tessera::cuda::sm80 {
namespace {

bool wants_extras(const Problem& problem) {
  return problem.softcap > 0 || problem.bias || problem.alibi || problem.mask || problem.sink ||
         problem.dropout_p > 0 || !(problem.scale > 0);
}

/// The first variant that takes the problem: head dims ascend.
const ForwardVariant* choose(const Problem& problem) {
  const int shared_bytes = device_info(problem.device.index).shared_bytes;
  for (const auto variants : {forward_d64(), forward_d96(), forward_d128(), forward_d192(),
                              forward_d256(), forward_d512()}) {
    for (const ForwardVariant& variant : variants) {
      const ForwardConfig& c = variant.config;
      if (c.dtype == problem.dtype && c.extras == wants_extras(problem) &&
          (c.listed || !problem.block_mask) && problem.head_dim <= c.head_dim &&
          problem.head_dim_v <= c.largest_head_dim_v() &&
          static_cast<int>(c.shared_bytes()) <= shared_bytes) {
        return &variant;
      }
    }
  }
  return nullptr;
}

}  // namespace

std::string Forward::config() const {
  const ForwardConfig& c = variant_.config;
  return formatted("tile={}x{} head_dim={},{} warps={} stages={} shared={}K{}", c.tile_m, c.tile_n,
                   c.head_dim, c.head_dim_v, c.warps, c.stages, c.shared_bytes() / 1024,
                   c.extras ? " extras" : "");
}

Tiles Forward::tiles() const {
  return tiles_of(problem_, Side::queries, variant_.config.tile_m, variant_.config.blocks);
}

/// With a block mask: the order of the tiles and the partial results of those in pieces.
std::size_t Forward::workspace_bytes() const {
  if (!takes_order(problem_)) return 0;
  const Tiles all = tiles();
  return all.order_bytes() + sizeof(float) * variant_.config.partial_floats() * all.most_split();
}

Status Forward::enqueue(const Arguments& arguments, cudaStream_t stream) const {
  const Parameters p = make_parameters(problem_, arguments);
  const Tiles all = tiles();
  TileOrder order;
  if (takes_order(problem_)) {
    order = all.order_in(arguments.workspace);
    if (Status status = order_tiles(all, p, order, stream); !status.ok()) return status;
  }
  return for_value_columns(
      p, variant_.config.head_dim_v, size_of(problem_.dtype),
      [&](const Parameters& part) { return variant_.enqueue(part, order, all, stream); });
}

std::string reject_forward(const Problem& problem) {
  if (problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    return formatted("computes f16 and bf16, not {}", name_of(problem.dtype));
  }
  if (choose(problem) == nullptr) return "too little shared memory on this device";
  return {};
}

std::unique_ptr<Kernel> make_forward(const Problem& problem) {
  return std::make_unique<Forward>(problem, *choose(problem));
}

}  // namespace tessera::cuda::sm80
