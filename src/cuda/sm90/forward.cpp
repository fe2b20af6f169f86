#include "cuda/sm90/forward.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/host/parameters.hpp"
#include "cuda/sm90/tensor_map.hpp"

namespace tessera::cuda::sm90 {
namespace {

constexpr int kLargestHeadDim = 256;
constexpr const char* kEnvironment = "TESSERA_SM90_FORWARD";
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

/// "192x128-q2-kv2": tile of queries × keys, stages of Q, and of K and V.
std::string name_of(const ForwardConfig& c) {
  return fmt::format("{}x{}-q{}k{}v{}{}{}", c.tile_m, c.tile_n, c.q_stages, c.k_stages, c.v_stages,
                     c.passes_over ? "-passes" : "", c.turns ? "" : "-free");
}

struct Choice {
  const ForwardVariant* variant;
  bool candidate;
};

/// The variants of the smallest head dims that take a problem, the preferred first.
std::vector<Choice> choices(const Problem& problem, bool extras) {
  std::vector<Choice> list;
  const auto add = [&](std::span<const ForwardVariant> variants, bool candidate) {
    for (const ForwardVariant& variant : variants) {
      const ForwardConfig& c = variant.config;
      if (c.dtype == problem.dtype && c.extras == extras && problem.head_dim <= c.head_dim &&
          problem.head_dim_v <= c.head_dim_v) {
        list.push_back({&variant, candidate});
      }
    }
  };
  for (const auto variants :
       {forward_d64(), forward_d96(), forward_d128(), forward_d192(), forward_d256()}) {
    add(variants, false);
  }
  add(forward_candidates(), true);
  const auto rank = [&problem](const Choice& choice) {
    const ForwardConfig& c = choice.variant->config;
    return std::tuple(c.head_dim, c.head_dim_v, choice.candidate, rows_beyond_blocks(problem, c),
                      wants_small_tiles(problem) ? c.tile_n : -c.tile_n,
                      c.passes_over != passes_over_pays(problem), -c.tile_m);
  };
  std::stable_sort(list.begin(), list.end(),
                   [&](const Choice& a, const Choice& b) { return rank(a) < rank(b); });
  const ForwardConfig& first = list.front().variant->config;
  std::erase_if(list, [&first](const Choice& choice) {
    const ForwardConfig& c = choice.variant->config;
    return c.head_dim != first.head_dim || c.head_dim_v != first.head_dim_v;
  });
  return list;
}

/// Names of the variants for a problem, the preferred first.
std::vector<std::string> names_for(const Problem& problem) {
  std::vector<std::string> names;
  for (const Choice& choice : choices(problem, wants_extras(problem))) {
    names.push_back(name_of(choice.variant->config));
  }
  return names;
}

/// What the environment asks for, for measurements; empty: nothing.
std::string_view asked_for() {
  const char* name = std::getenv(kEnvironment);
  return name != nullptr ? name : "";
}

/// The variant for a problem: the one that is asked for, or the preferred one.
const ForwardVariant& choose(const Problem& problem, bool extras) {
  const std::vector<Choice> list = choices(problem, extras);
  for (const Choice& choice : list) {
    if (name_of(choice.variant->config) == asked_for()) return *choice.variant;
  }
  return *list.front().variant;
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
  return fmt::format("{} head_dim={},{} warpgroups={}+1 shared={}K{} configs={}", name_of(c),
                     c.head_dim, c.head_dim_v, c.warpgroups(), c.shared_bytes() / 1024,
                     c.extras ? " extras" : "", fmt::join(names_for(problem_), "|"));
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
  if (!asked_for().empty()) {
    const std::vector<std::string> names = names_for(problem);
    if (std::find(names.begin(), names.end(), asked_for()) == names.end()) {
      return fmt::format("{}={}, expected one of {}", kEnvironment, asked_for(),
                         fmt::join(names, ", "));
    }
  }
  return {};
}

std::unique_ptr<Kernel> make_forward(const Problem& problem) {
  return std::make_unique<Forward>(problem, choose(problem, wants_extras(problem)),
                                   choose(problem, true));
}

}  // namespace tessera::cuda::sm90
