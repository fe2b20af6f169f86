#include "cuda/sm80/backward.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cuda/algo/gradient_passes.hpp"
#include "cuda/generic/generic.hpp"
#include "cuda/host/parameters.hpp"

namespace tessera::cuda::sm80 {
namespace {

constexpr int kLargestHeadDim = 256;
constexpr std::size_t kAlignment = 64;

bool wants_extras(const Problem& problem) {
  return problem.softcap > 0 || problem.bias || problem.alibi || problem.mask ||
         problem.dropout_p > 0 || !(problem.scale > 0);
}

/// The first variant that takes the problem: head dims ascend.
const BackwardVariant* choose(const Problem& problem) {
  const int shared_bytes = device_info(problem.device.index).shared_bytes;
  for (const auto variants :
       {backward_d64(), backward_d96(), backward_d128(), backward_d192(), backward_d256()}) {
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

/// Query tiles of one head, as tiles_per_head counts them.
std::int64_t query_tiles(const Problem& problem, int rows) {
  const std::int64_t whole = (problem.seq_q + rows - 1) / rows;
  return problem.varlen ? whole + problem.batch + 1 : whole * problem.batch;
}

}  // namespace

/// Where things lie in the workspace, in bytes: linear in the number of query rows.
struct Backward::Workspace {
  std::int64_t tiles;  ///< Query tiles of one head.
  std::size_t accumulators, turns, ticket, end;
};

Backward::Workspace Backward::workspace() const {
  const BackwardConfig& c = variant_.config;
  Workspace w;
  w.tiles = query_tiles(problem_, c.queries);
  const std::size_t all_tiles = static_cast<std::size_t>(problem_.heads_q) * w.tiles;
  const std::size_t delta = row_scalar_count(problem_) * sizeof(float);
  w.accumulators = (delta + kAlignment - 1) / kAlignment * kAlignment;
  w.turns = w.accumulators + all_tiles * c.queries * c.head_dim * sizeof(float);
  w.ticket = w.turns + (problem_.deterministic ? all_tiles * sizeof(int) : 0);
  w.end = w.ticket + (problem_.deterministic ? sizeof(int) : 0);
  return w;
}

std::string Backward::config() const {
  const BackwardConfig& c = variant_.config;
  return fmt::format("tile={}x{} head_dim={} warps={}x{} stages={} shared={}K d_q {}{}", c.keys,
                     c.queries, c.head_dim, c.warps_k, c.warps_q, c.stages, c.shared_bytes() / 1024,
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
    }
    if (const cudaError_t error =
            cudaMemsetAsync(accumulators.data, 0, w.end - w.accumulators, stream);
        error != cudaSuccess) {
      cudaGetLastError();
      return error_status(error, "sm80_backward: clearing the accumulators of d_q");
    }
  }
  if (g.d_q.data != nullptr || g.d_k.data != nullptr || g.d_v.data != nullptr) {
    if (Status status = variant_.enqueue(p, g, accumulators, stream); !status.ok()) return status;
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
    return fmt::format("computes f16 and bf16, not {}", name_of(problem.dtype));
  }
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return fmt::format("head dims up to {}, not {} and {}", kLargestHeadDim, problem.head_dim,
                       problem.head_dim_v);
  }
  if (problem.deterministic && problem.block_mask) {
    // Blocks would take turns as the mask's rows and its transpose say; where those disagree, which
    // nobody has checked, they would wait for ever.
    return "no deterministic backward pass under a block mask";
  }
  if (choose(problem) == nullptr) return "too little shared memory on this device";
  return {};
}

std::unique_ptr<Kernel> make_backward(const Problem& problem) {
  return std::make_unique<Backward>(problem, *choose(problem));
}

}  // namespace tessera::cuda::sm80
