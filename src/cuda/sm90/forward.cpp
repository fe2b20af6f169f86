#include "cuda/sm90/forward.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "cuda/host/parameters.hpp"
#include "cuda/sm90/tensor_map.hpp"

namespace tessera::cuda::sm90 {
namespace {

constexpr int kLargestHeadDim = 256;
constexpr int kVector = 8;  // elements of 16 bytes

bool wants_extras(const Problem& problem) {
  return problem.softcap > 0 || problem.bias || problem.alibi || problem.mask || problem.sink ||
         !(problem.scale > 0);
}

/// Problems that visit parts of tiles: smaller ones fit better.
bool wants_small_tiles(const Problem& problem) {
  return problem.causal || problem.windowed() || problem.block_mask;
}

/// A tile of queries that overlaps several rows of a block mask visits what any of them lists, with
/// a test of each element: fewer rows overlap fewer.
int rows_beyond_blocks(const Problem& problem, const ForwardConfig& config) {
  return problem.block_mask && problem.block_q % config.tile_m != 0 ? config.tile_m : 0;
}

/// Whether much of the work is in key tiles that a third of a query tile does not see. (Asking
/// costs long sequences 1 to 2 %.)
bool passes_over_pays(const Problem& problem) {
  constexpr std::int64_t kLongest = 4096;
  return (problem.causal || problem.windowed()) && problem.seq_kv <= kLongest;
}

/// The variant for a problem: that of the smallest head dims that take it.
const ForwardVariant* choose(const Problem& problem, bool extras) {
  const ForwardVariant* best = nullptr;
  for (const auto variants :
       {forward_d64(), forward_d96(), forward_d128(), forward_d192(), forward_d256()}) {
    for (const ForwardVariant& variant : variants) {
      const ForwardConfig& c = variant.config;
      if (c.dtype != problem.dtype || c.extras != extras || problem.head_dim > c.head_dim ||
          problem.head_dim_v > c.head_dim_v) {
        continue;
      }
      const auto rank = [&problem](const ForwardConfig& config) {
        return std::tuple(config.head_dim, config.head_dim_v, rows_beyond_blocks(problem, config),
                          wants_small_tiles(problem) ? config.tile_n : -config.tile_n,
                          config.passes_over != passes_over_pays(problem), -config.tile_m);
      };
      if (best == nullptr || rank(c) < rank(best->config)) best = &variant;
    }
  }
  return best;
}

std::optional<ForwardMaps> tensor_maps(const Problem& problem, const Parameters& p,
                                       const ForwardConfig& c) {
  const std::int64_t batch = problem.varlen ? 1 : problem.batch;
  const int panel = c.panel();
  const auto q = tensor_map(p.q, {c.dtype, problem.head_dim, problem.seq_q, problem.heads_q, batch,
                                  c.tile_m / c.warpgroups(), panel});
  const auto k = tensor_map(
      p.k, {c.dtype, problem.head_dim, problem.seq_kv, problem.heads_kv, batch, c.tile_n, panel});
  const auto v = tensor_map(
      p.v, {c.dtype, problem.head_dim_v, problem.seq_kv, problem.heads_kv, batch, c.tile_n, panel});
  const auto o = tensor_map(p.o, {c.dtype, problem.head_dim_v, problem.seq_q, problem.heads_q,
                                  batch, kOutputRows, panel});
  if (!q || !k || !v || !o) return std::nullopt;
  return ForwardMaps{{*q, *k, *v}, *o};
}

}  // namespace

std::string Forward::config() const {
  const ForwardConfig& c = variant_.config;
  return fmt::format("tile={}x{} head_dim={},{} warpgroups={}+1 stages={},{} shared={}K{}{}",
                     c.tile_m, c.tile_n, c.head_dim, c.head_dim_v, c.warpgroups(), c.q_stages,
                     c.stages, c.shared_bytes() / 1024, c.extras ? " extras" : "",
                     c.passes_over ? " passes_over" : "");
}

Status Forward::enqueue(const Arguments& arguments, cudaStream_t stream) const {
  const Parameters p = make_parameters(problem_, arguments);
  auto* counter = reinterpret_cast<int*>(arguments.workspace);
  const DeviceInfo& device = device_info(problem_.device.index);
  if (p.o.vectors && problem_.seq_kv > 0 && problem_.seq_q > 0 && problem_.batch > 0) {
    const std::optional<ForwardMaps> maps = tensor_maps(problem_, p, variant_.config);
    if (maps) return variant_.enqueue(p, &*maps, counter, device, stream);
  }
  return general_.enqueue(p, nullptr, counter, device, stream);
}

std::string reject_forward(const Problem& problem) {
  if (problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    return fmt::format("computes f16 and bf16, not {}", name_of(problem.dtype));
  }
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return fmt::format("head dims up to {}, not {} and {}", kLargestHeadDim, problem.head_dim,
                       problem.head_dim_v);
  }
  if (problem.head_dim % kVector != 0 || problem.head_dim_v % kVector != 0) {
    return fmt::format("head dims that are multiples of {}, not {} and {}", kVector,
                       problem.head_dim, problem.head_dim_v);
  }
  if (problem.dropout_p > 0) return "no dropout";
  return {};
}

std::unique_ptr<Kernel> make_forward(const Problem& problem) {
  return std::make_unique<Forward>(problem, *choose(problem, wants_extras(problem)),
                                   *choose(problem, true));
}

}  // namespace tessera::cuda::sm90
