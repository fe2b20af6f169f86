#include "cuda/sm90/forward.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/parameters.hpp"
#include "cuda/sm90/candidates.hpp"
#include "cuda/sm90/tensor_map.hpp"

namespace tessera::cuda::sm90 {
namespace {

constexpr int kLargestHeadDim = 256;
constexpr const char* kEnvironment = "TESSERA_SM90_FORWARD";
constexpr int kVector = 8;  // elements of 16 bytes

/// Problems that visit parts of tiles: smaller ones fit better.
bool wants_small_tiles(const Problem& problem) {
  return problem.causal || problem.windowed() || problem.block_mask;
}

/// A tile of queries that overlaps several rows of a block mask visits what any of them lists, with
/// a test of each element: fewer rows overlap fewer.
int rows_beyond_blocks(const Problem& problem, const ForwardConfig& config) {
  return problem.block_mask && problem.block_q % config.tile_m != 0 ? config.tile_m : 0;
}

/// What measurements found (docs/hopper.md, Tuning): the config for head dims, without or with a
/// causal mask or window, to so many keys. Rates: README's table.
struct Tuned {
  int head_dim, head_dim_v;
  bool masked;
  std::int64_t most_keys;
  std::string_view config;
};
constexpr std::int64_t kAnyKeys = std::numeric_limits<std::int64_t>::max();
constexpr Tuned kTuned[] = {
    // D, Dv, masked, keys, config                          TFLOP/s at S 512, 1024, …
    {64, 64, false, 1024, "256x64-q2k8v8-passes-free"},  // 417, 502
    {64, 64, false, kAnyKeys, "192x128-q2k3v3"},         // 566 (2048), 600, 651, 655 (16384)
    {64, 64, true, 4096, "256x64-q2k8v8-passes-free"},   // 264, 378, 480, 556
    {64, 64, true, kAnyKeys, "192x128-q2k3v3"},          // 607 (8192), 640
    {128, 128, false, 8192, "128x128-q2k2v3"},           // 514, 635, 719, 755, 773
    {128, 128, false, kAnyKeys, "128x160-q2k2v2"},       // 773 (16384)
    {128, 128, true, kAnyKeys, "128x128-q2k2v3"},        // 331, 471, 599, 698, 741, 765 (16384)
};

/// Keys that a query sees, about: packed sequences' mean, at most what a window lets through.
std::int64_t keys_of(const Problem& problem) {
  std::int64_t keys = problem.seq_kv;
  if (problem.varlen && problem.batch > 0) keys /= problem.batch;
  const std::int64_t right = problem.causal ? 0 : problem.window.right;
  if (problem.window.left >= 0 && right >= 0) {
    keys = std::min(keys, problem.window.left + right + 1);
  }
  return keys;
}

/// Empty: no entry. Block masks go by how tiles fit the blocks.
std::string_view tuned_for(const Problem& problem, const ForwardConfig& like) {
  if (problem.block_mask || like.extras) return {};
  const bool masked = problem.causal || problem.windowed();
  for (const Tuned& t : kTuned) {
    if (t.head_dim == like.head_dim && t.head_dim_v == like.head_dim_v && t.masked == masked &&
        keys_of(problem) <= t.most_keys) {
      return t.config;
    }
  }
  return {};
}

/// "192x128-q2k3v3": tile of queries × keys, stages of Q, K and V; what is special.
std::string name_of(const ForwardConfig& c) {
  return formatted("{}x{}-q{}k{}v{}{}{}", c.tile_m, c.tile_n, c.q_stages, c.k_stages, c.v_stages,
                   c.passes_over ? "-passes" : "", c.turns ? "" : "-free");
}

/// The variants of the smallest head dims that take a problem, the preferred first: those that the
/// table names, that the library has for good, that fit best.
std::vector<const ForwardVariant*> choices(const Problem& problem, bool extras) {
  struct Choice {
    std::tuple<bool, int, bool, int, int> rank;
    const ForwardVariant* variant;
  };
  std::vector<Choice> list;
  std::pair<int, int> head_dims{kLargestHeadDim + 1, 0};
  const auto add = [&](std::span<const ForwardVariant> variants, bool candidate) {
    for (const ForwardVariant& variant : variants) {
      const ForwardConfig& c = variant.config;
      const std::pair own{c.head_dim, c.head_dim_v};
      if (c.dtype != problem.dtype || c.extras != extras || problem.head_dim > c.head_dim ||
          problem.head_dim_v > c.head_dim_v || own > head_dims) {
        continue;
      }
      if (own < head_dims) list.clear();
      head_dims = own;
      const std::string_view tuned = tuned_for(problem, c);
      list.push_back(
          {{candidate, rows_beyond_blocks(problem, c), !tuned.empty() && name_of(c) != tuned,
            wants_small_tiles(problem) ? c.tile_n : -c.tile_n, -c.tile_m},
           &variant});
    }
  };
  for (const auto variants :
       {forward_d64(), forward_d96(), forward_d128(), forward_d192(), forward_d256()}) {
    add(variants, false);
  }
  add(forward_candidates(), true);
  std::stable_sort(list.begin(), list.end(),
                   [](const Choice& a, const Choice& b) { return a.rank < b.rank; });
  std::vector<const ForwardVariant*> variants;
  for (const Choice& choice : list) variants.push_back(choice.variant);
  return variants;
}

/// Names of the variants for a problem, the preferred first.
std::vector<std::string> names_for(const Problem& problem) {
  std::vector<std::string> names;
  for (const ForwardVariant* variant : choices(problem, wants_extras(problem))) {
    names.push_back(name_of(variant->config));
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
  const std::vector<const ForwardVariant*> list = choices(problem, extras);
  if (asked_for().empty()) return *list.front();
  for (const ForwardVariant* variant : list) {
    if (name_of(variant->config) == asked_for()) return *variant;
  }
  return *list.front();
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
  return formatted("{} head_dim={},{} warpgroups={}+1 shared={}K{} configs={}", name_of(c),
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

#if !TESSERA_WITH_CANDIDATES
std::span<const ForwardVariant> forward_candidates() { return {}; }
#endif

bool wants_extras(const Problem& problem) {
  return problem.softcap > 0 || problem.bias || problem.alibi || problem.mask || problem.sink ||
         !(problem.scale > 0);
}

const ForwardVariant& general_forward(const Problem& problem) { return choose(problem, true); }

std::string reject_forward(const Problem& problem) {
  if (problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    return formatted("computes f16 and bf16, not {}", name_of(problem.dtype));
  }
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return formatted("head dims up to {}, not {} and {}", kLargestHeadDim, problem.head_dim,
                     problem.head_dim_v);
  }
  if (problem.head_dim % kVector != 0 || problem.head_dim_v % kVector != 0) {
    return formatted("head dims that are multiples of {}, not {} and {}", kVector, problem.head_dim,
                     problem.head_dim_v);
  }
  if (problem.dropout_p > 0) return "no dropout";
  if (!asked_for().empty()) {
    const std::vector<std::string> names = names_for(problem);
    if (std::find(names.begin(), names.end(), asked_for()) == names.end()) {
      return formatted("{}={}, expected one of {}", kEnvironment, asked_for(),
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
