#include "bench/tune.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "error.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli::bench {
namespace {

constexpr const char* kRow = "cuda_sm90";
constexpr const char* kEnvironment = "TESSERA_SM90_FORWARD";

std::string explain(const Case& p, Device device) {
  const auto tensor = [&](std::int64_t heads, std::int64_t seq, std::int64_t head_dim) {
    return TensorView::contiguous(nullptr, p.dtype, {p.batch, heads, seq, head_dim}, device);
  };
  Inputs inputs;
  inputs.q = tensor(p.heads_q, p.seq_q, p.head_dim);
  inputs.k = tensor(p.heads_kv, p.seq_kv, p.head_dim);
  inputs.v = tensor(p.heads_kv, p.seq_kv, p.head_dim_v);
  PlanOptions options;
  options.implementation = kRow;
  const Result<Plan> plan = Plan::create(to_attention(p), inputs, options);
  if (!plan.ok()) fail("suite: {}, {}", kTuneSuite, plan.status().message());
  return plan.value().explain();
}

}  // namespace

ForcedConfig::ForcedConfig(const std::string& config) {
  const char* before = std::getenv(kEnvironment);
  was_set_ = before != nullptr;
  if (was_set_) before_ = before;
  if (!config.empty()) setenv(kEnvironment, config.c_str(), 1);
}

ForcedConfig::~ForcedConfig() {
  if (was_set_) {
    setenv(kEnvironment, before_.c_str(), 1);
  } else {
    unsetenv(kEnvironment);
  }
}

std::vector<std::string> configs_in(const std::string& explanation) {
  constexpr std::string_view kKey = "configs=";
  std::vector<std::string> names;
  const std::size_t found = explanation.find(kKey);
  if (found == std::string::npos) return names;
  std::size_t at = found + kKey.size();
  while (true) {
    const std::size_t end = std::min(explanation.find_first_of("|, \n", at), explanation.size());
    names.push_back(explanation.substr(at, end - at));
    if (end == explanation.size() || explanation[end] != '|') return names;
    at = end + 1;
  }
}

void add_configs(std::vector<Group>& groups, Device device) {
  for (Group& group : groups) {
    const Variant like = group.variants.front();
    group.variants.clear();
    for (const std::string& config : configs_in(explain(group.problem, device))) {
      Variant& variant = group.variants.emplace_back(like);
      variant.impl = kRow;
      variant.config = config;
    }
  }
}

std::string tuned_table(const std::vector<Record>& records) {
  std::string text = fmt::format("fastest (lines of kTuned in src/cuda/sm90/forward.cpp):\n");
  for (auto first = records.begin(); first != records.end();) {
    const Case& p = first->problem;
    const auto last = std::find_if(first, records.end(), [&p](const Record& r) {
      return r.problem.head_dim != p.head_dim || r.problem.head_dim_v != p.head_dim_v ||
             r.problem.causal != p.causal || r.problem.seq_kv != p.seq_kv;
    });
    const auto best =
        std::min_element(first, last, [](const Record& a, const Record& b) { return a.ms < b.ms; });
    text += fmt::format("  {{{}, {}, {}, {}, \"{}\"}},  // {:.0f} TFLOP/s, {:.3f} of {}\n",
                        p.head_dim, p.head_dim_v, p.causal, p.seq_kv, best->variant.config,
                        best->gflops() * 1e-3, first->ms / best->ms, first->variant.config);
    first = last;
  }
  return text;
}

}  // namespace tessera::cli::bench
