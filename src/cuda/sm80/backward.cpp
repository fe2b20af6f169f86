#include "cuda/sm80/backward.hpp"

#include <algorithm>

#include "core/format.hpp"
#include "cuda/algo/gradient_passes.hpp"
#include "cuda/generic/generic.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/parameters.hpp"
#include "cuda/host/tiles.hpp"

namespace tessera::cuda::sm80 {
namespace {

constexpr int kLargestHeadDim = 512;
constexpr std::size_t kAlignment = 64;

bool wants_extras(const Problem& problem) {
  return problem.softcap > 0 || problem.bias || problem.alibi || problem.mask ||
         problem.dropout_p > 0 || !(problem.scale > 0);
}

const BackwardVariant* choose(const Problem& problem) {
  return choose_backward(problem, {backward_d64(), backward_d96(), backward_d128(), backward_d192(),
                                   backward_d256(), backward_d512()});
}

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Query tiles of one head, as tiles_per_head counts them.
std::int64_t query_tiles(const Problem& problem, int rows) {
  const std::int64_t whole = (problem.seq_q + rows - 1) / rows;
  return problem.varlen ? whole + problem.batch + 1 : whole * problem.batch;
}

}  // namespace

const BackwardVariant* choose_backward(
    const Problem& problem, std::initializer_list<std::span<const BackwardVariant>> lists) {
  const int shared_bytes = device_info(problem.device.index).shared_bytes;
  for (const auto variants : lists) {
    for (const BackwardVariant& variant : variants) {
      const BackwardConfig& c = variant.config;
      if (c.dtype == problem.dtype && c.extras == wants_extras(problem) &&
          std::max(problem.head_dim, problem.head_dim_v) <= c.head_dim && c.suits(shared_bytes)) {
        return &variant;
      }
    }
  }
  return nullptr;
}

/// Where things lie in the workspace, in bytes: linear in the number of query rows.
struct Backward::Workspace {
  std::int64_t tiles;  ///< Query tiles of one head.
  std::size_t accumulators, turns, ticket, ended, order, end;
};

Tiles Backward::tiles() const {
  return tiles_of(problem_, Side::keys, variant_.config.keys, variant_.config.blocks);
}

/// Pieces of a key tile where no block mask says otherwise: so many, if the group allows, that
/// blocks have several waves to even out.
int Backward::splits() const {
  constexpr std::int64_t kWaves = 6;
  if (problem_.block_mask) return 1;
  const Tiles all = tiles();
  int splits = 1;
  while (splits < problem_.group() &&
         (all.count * splits < kWaves * all.slots || problem_.group() % splits != 0)) {
    ++splits;
  }
  return splits;
}

Backward::Workspace Backward::workspace() const {
  const BackwardConfig& c = variant_.config;
  Workspace w;
  w.tiles = query_tiles(problem_, c.queries);
  const std::size_t all_tiles = static_cast<std::size_t>(problem_.heads_q) * w.tiles;
  const std::size_t delta = row_scalar_count(problem_) * sizeof(float);
  w.accumulators = aligned(delta);
  w.turns = w.accumulators + all_tiles * c.queries * c.head_dim * sizeof(float);
  const Tiles all = tiles();
  const int warps = c.warps_k * c.warps_q;
  const int pieces = splits();
  w.ticket = w.turns + (problem_.deterministic ? all_tiles * warps * sizeof(int) : 0);
  w.ended = w.ticket + (problem_.deterministic ? sizeof(int) : 0);
  w.order = w.ended + (problem_.deterministic ? all.count * pieces * sizeof(int) : 0);
  w.order = aligned(w.order);
  const std::size_t partial = sizeof(float) * c.partial_floats();
  w.end = w.order;
  if (takes_order(problem_)) w.end += all.order_bytes() + partial * all.most_split();
  if (pieces > 1) w.end += partial * all.count * pieces;
  return w;
}

std::string Backward::config() const {
  const BackwardConfig& c = variant_.config;
  return formatted("tile={}x{} head_dim={} warps={}x{} stages={} shared={}K pieces={} d_q {}{}",
                   c.keys, c.queries, c.head_dim, c.warps_k, c.warps_q, c.stages,
                   c.shared_bytes() / 1024, splits(),
                   problem_.deterministic ? "in turns" : "atomic", c.extras ? " extras" : "");
}

std::size_t Backward::workspace_bytes() const { return workspace().end; }

Status Backward::enqueue(const Arguments& arguments, cudaStream_t stream) const {
  const Workspace w = workspace();
  const Parameters p = make_parameters(problem_, arguments);
  const Gradients g =
      make_gradients(problem_, arguments, reinterpret_cast<float*>(arguments.workspace));
  if (Status status = compute_delta(problem_.dtype, p, g, stream); !status.ok()) return status;

  QueryAccumulators accumulators;
  accumulators.tiles = static_cast<int>(w.tiles);
  if (g.d_q.data != nullptr) {
    accumulators.data = reinterpret_cast<float*>(arguments.workspace + w.accumulators);
    if (problem_.deterministic) {
      accumulators.turns = reinterpret_cast<int*>(arguments.workspace + w.turns);
      accumulators.ticket = reinterpret_cast<int*>(arguments.workspace + w.ticket);
      accumulators.ended = reinterpret_cast<int*>(arguments.workspace + w.ended);
    }
    if (const cudaError_t error =
            cudaMemsetAsync(accumulators.data, 0, w.order - w.accumulators, stream);
        error != cudaSuccess) {
      cudaGetLastError();
      return error_status(error, "sm80_backward: clearing the accumulators of d_q");
    }
  }
  if (g.d_q.data != nullptr || g.d_k.data != nullptr || g.d_v.data != nullptr) {
    const Tiles all = tiles();
    TileOrder order;
    if (takes_order(problem_)) {
      order = all.order_in(arguments.workspace + w.order);
      if (Status status = order_tiles(all, p, order, stream); !status.ok()) return status;
    } else if ((order.splits = splits()) > 1) {
      order.partials = reinterpret_cast<float*>(arguments.workspace + w.order);
    }
    if (Status status = variant_.enqueue(p, g, accumulators, order, all, stream); !status.ok()) {
      return status;
    }
  }
  if (g.d_bias.data != nullptr) {
    if (Status status = generic::bias_gradient(problem_.dtype, p, g, stream); !status.ok()) {
      return status;
    }
  }
  return g.d_sink != nullptr ? sink_gradient(p, g, stream) : Status();
}

std::string reject_backward(const Problem& problem) {
  if (problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    return formatted("computes f16 and bf16, not {}", name_of(problem.dtype));
  }
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return formatted("head dims up to {}, not {} and {}", kLargestHeadDim, problem.head_dim,
                     problem.head_dim_v);
  }
  if (choose(problem) == nullptr) return "too little shared memory on this device";
  return {};
}

std::unique_ptr<Kernel> make_backward(const Problem& problem) {
  return std::make_unique<Backward>(problem, *choose(problem));
}

}  // namespace tessera::cuda::sm80
