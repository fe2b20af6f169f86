#include "bench/options.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <utility>

#include "bench/sweep.hpp"
#include "bench/tune.hpp"
#include "error.hpp"
#include "flags.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli::bench {
namespace {

constexpr std::int64_t kMaxSize = std::numeric_limits<std::int32_t>::max();
constexpr int kMaxThreads = 4096;
constexpr int kMaxHeadDim = 512;

std::vector<std::string> suite_names() {
  std::vector<std::string> names;
  for (const Suite& suite : suites()) names.emplace_back(suite.name);
  return names;
}

// What a device is measured with if --impl does not say.
std::vector<std::string> default_implementations(DeviceType device) {
  if (device == DeviceType::cuda) return {"auto"};
  return {"auto", "standard"};
}

// The rows of the device's table, and the names that stand beside them.
void check_implementations(const std::vector<std::string>& names, DeviceType device) {
  std::vector<std::string> known = default_implementations(device);
  for (const Implementation& row : implementations()) {
    if (row.device == device) known.push_back(row.name);
  }
  for (const std::string& name : names) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail("--impl: {}, expected {}", name, fmt::join(known, "|"));
    }
  }
}

std::vector<bool> to_causal(const std::string& text) {
  if (text == "both") return {false, true};
  return {text == "yes"};
}

std::vector<Pass> to_passes(const std::vector<std::string>& names) {
  std::vector<Pass> passes;
  const auto add = [&](Pass pass) {
    if (std::find(passes.begin(), passes.end(), pass) == passes.end()) passes.push_back(pass);
  };
  for (const std::string& name : names) {
    if (name != "bwd") add(Pass::forward);
    if (name != "fwd") add(Pass::backward);
  }
  return passes;
}

std::vector<MaskChoice> to_masks(const Flags& flags) {
  FeatureFlags block;
  block.block_size = flags.block_size;
  const BlockSize size = to_block_size(block);
  std::vector<std::string> patterns = flags.patterns;
  if (patterns.empty() && !flags.densities.empty()) patterns = {"random"};
  std::vector<MaskChoice> masks;
  for (const std::string& name : patterns) {
    MaskChoice mask;
    mask.pattern = *pattern_named(name);
    mask.block_q = size.q;
    mask.block_kv = size.kv;
    const bool aims = mask.pattern == Pattern::local_global || mask.pattern == Pattern::random;
    if (!aims) {
      masks.push_back(mask);
      continue;
    }
    for (double density : flags.densities.empty() ? std::vector<double>{0.125} : flags.densities) {
      mask.density = density;
      masks.push_back(mask);
    }
  }
  if (masks.empty()) masks.emplace_back();
  return masks;
}

std::vector<Precision> to_precisions(const std::vector<std::string>& names) {
  std::vector<Precision> precisions;
  for (Precision p : {Precision::exact, Precision::sage8, Precision::sage4}) {
    if (std::find(names.begin(), names.end(), name_of(p)) != names.end()) precisions.push_back(p);
  }
  return precisions;
}

Window to_window(const std::string& text) {
  FeatureFlags features;
  features.window = text;
  return to_attention(features).window;
}

template <typename T>
void choose(std::vector<T>& list, const std::vector<T>& given) {
  if (!given.empty()) list = given;
}

std::vector<Group> free_groups(const Flags& flags, DeviceType device, int all_threads) {
  Sweep sweep;
  choose(sweep.batch, flags.batch);
  choose(sweep.heads_q, flags.heads);
  choose(sweep.heads_kv, flags.heads_kv);
  choose(sweep.seq_q, flags.seq);
  choose(sweep.seq_kv, flags.seq_kv);
  choose(sweep.head_dim, flags.head_dim);
  choose(sweep.head_dim_v, flags.head_dim_v);
  choose(sweep.passes, to_passes(flags.passes));
  sweep.causal = to_causal(flags.causal);
  sweep.window = to_window(flags.window);
  sweep.masks = to_masks(flags);
  sweep.threads = flags.threads.empty() ? std::vector<int>{all_threads} : flags.threads;
  choose(sweep.precisions, to_precisions(flags.precisions));
  sweep.impls = flags.impls.empty() ? default_implementations(device) : flags.impls;
  if (!flags.dtypes.empty()) {
    sweep.dtypes.clear();
    for (const std::string& name : flags.dtypes) sweep.dtypes.push_back(to_dtype(name));
  }
  const bool positional = !flags.window.empty() || sweep.causal.back();
  const bool blocks = std::any_of(sweep.masks.begin(), sweep.masks.end(),
                                  [](const MaskChoice& m) { return m.pattern != Pattern::dense; });
  if (positional && blocks) {
    fail("--pattern: {}, expected no --causal and no --window beside block masks",
         fmt::join(flags.patterns, ","));
  }
  return expand(sweep);
}

bool gives_shapes(const Flags& flags) {
  return !flags.batch.empty() || !flags.heads.empty() || !flags.heads_kv.empty() ||
         !flags.seq.empty() || !flags.seq_kv.empty() || !flags.head_dim.empty() ||
         !flags.head_dim_v.empty() || !flags.dtypes.empty() || !flags.passes.empty() ||
         !flags.patterns.empty() || !flags.densities.empty() || !flags.causal.empty() ||
         !flags.window.empty() || !flags.block_size.empty() || !flags.precisions.empty();
}

}  // namespace

void add_flags(CLI::App& command, Flags& flags) {
  const auto list = [&](const char* name, auto& values, const CLI::Validator& check,
                        const std::string& help) {
    return command.add_option(name, values, help)->delimiter(',')->check(check);
  };
  list("suite,--suite", flags.suites, one_of(suite_names()), "Suites to measure, listed below")
      ->type_name("LIST");

  const std::string shapes = "Free shapes, instead of a suite; several values: A,B,C";
  const auto sizes = [&](const char* name, std::vector<std::int64_t>& values, std::int64_t high,
                         const char* help) {
    list(name, values, integer(1, high), help)->group(shapes);
  };
  sizes("-B,--batch", flags.batch, kMaxSize, "Sequences (default 1)");
  sizes("--heads", flags.heads, kMaxSize, "Query heads (default 4)");
  sizes("--heads-kv", flags.heads_kv, kMaxSize, "Key and value heads (default: as --heads)");
  sizes("--seq", flags.seq, kMaxSize, "Query rows (default 1024)");
  sizes("--seq-kv", flags.seq_kv, kMaxSize, "Keys (default: as --seq)");
  sizes("--head-dim", flags.head_dim, kMaxHeadDim, "Head dim of q and k (default 64)");
  sizes("--head-dim-v", flags.head_dim_v, kMaxHeadDim, "Head dim of v (default: as --head-dim)");
  list("--dtype", flags.dtypes, one_of({"f32", "f16", "bf16"}), "Dtypes (default f32)")
      ->group(shapes);
  list("--precision", flags.precisions, one_of({"exact", "sage8", "sage4"}),
       "Precisions of the forward pass (default exact); rows are timed in those they compute")
      ->group(shapes);
  list("--pass", flags.passes, one_of({"fwd", "bwd", "both"}), "Passes (default fwd)")
      ->group(shapes);
  command.add_flag("--causal{yes}", flags.causal, "Causal mask; --causal=both times without, too")
      ->check(one_of({"yes", "no", "both"}))
      ->group(shapes);
  command
      .add_option("--window", flags.window,
                  "Sliding window: keys from L before to R after the query's position; −1 is "
                  "unbounded")
      ->type_name("L,R")
      ->group(shapes);
  list("--pattern", flags.patterns,
       one_of({"dense", "butterfly", "local_global", "strided", "random"}),
       "Block masks (default dense: none; random with --density)")
      ->group(shapes);
  list("--density", flags.densities, number(),
       "Shares of blocks that random and local_global list, above 0 and at most 1 (default 0.125)")
      ->group(shapes);
  command
      .add_option("--block-size", flags.block_size,
                  "Rows M and keys N of the block masks' blocks, multiples of 16 (default 128)")
      ->type_name("M[,N]")
      ->group(shapes);

  const std::string how = "How to measure";
  list("--impl", flags.impls, CLI::Validator(),
       "auto (the table's choice), standard (BLAS, on the CPU), or rows of the table (see info)")
      ->type_name("LIST")
      ->group(how);
  list("--threads", flags.threads, integer(1, kMaxThreads), "Threads (default: one per CPU)")
      ->group(how);
  command.add_option("--device", flags.device, "cpu, cuda or cuda:N (default cpu)")
      ->type_name("DEVICE")
      ->group(how);
  command
      .add_option("--budget", flags.budget,
                  "Seconds of timed runs for each line of the table (default 0.5)")
      ->check(number())
      ->group(how);

  const std::string results = "Results";
  command.add_option("--json", flags.json, "Write all records to this file")
      ->type_name("FILE")
      ->group(results);
  command
      .add_option("--plot", flags.plot,
                  "Draw PREFIX-runtime and PREFIX-memory, .png and .svg, with gnuplot (default for "
                  "the demo suite: out/demo)")
      ->type_name("PREFIX")
      ->group(results);
  command.add_flag("--no-plot", flags.no_plot, "No plots")->group(results);
}

std::string suite_list() {
  std::string text = "Suites:\n";
  for (const Suite& suite : suites()) text += fmt::format("  {:<11}{}\n", suite.name, suite.about);
  return text;
}

std::vector<Group> to_groups(const Flags& flags, int all_threads) {
  const DeviceType device = to_device(flags.device).type;
  if (device == DeviceType::cuda) {
    if (!flags.threads.empty()) {
      fail("--threads: {}, expected none with --device {}", fmt::join(flags.threads, ","),
           flags.device);
    }
    all_threads = 1;
  }
  check_implementations(flags.impls, device);
  if (!(flags.budget > 0)) fail("--budget: {}, expected more than 0 seconds", flags.budget);
  for (double density : flags.densities) {
    if (!(density > 0 && density <= 1)) {
      fail("--density: {}, expected more than 0 and at most 1", density);
    }
  }
  if (flags.suites.empty()) {
    if (!gives_shapes(flags)) {
      fail("suite: none, expected one of {} or a shape such as --seq 1024",
           fmt::join(suite_names(), ", "));
    }
    return free_groups(flags, device, all_threads);
  }
  if (gives_shapes(flags)) {
    fail("suite: {}, expected no shapes, dtypes, passes or masks beside it",
         fmt::join(flags.suites, ","));
  }
  std::vector<Group> groups;
  for (const std::string& name : flags.suites) {
    std::vector<Group> more = make_suite(name, {device, flags.threads, flags.impls, all_threads});
    if (more.empty()) fail("suite: {}, expected --device cuda with it", name);
    if (name == kTuneSuite) {
      if (!flags.impls.empty())
        fail("--impl: {}, expected none with {}", flags.impls.front(), name);
      add_configs(more, to_device(flags.device));
    }
    groups.insert(groups.end(), more.begin(), more.end());
  }
  return groups;
}

}  // namespace tessera::cli::bench
