#include <algorithm>
#include <utility>

#include "bench/sweep.hpp"
#include "bench/tune.hpp"

namespace tessera::cli::bench {
namespace {

const std::vector<Pass> kBothPasses{Pass::forward, Pass::backward};
const std::vector<bool> kNotCausal{false};
const std::vector<bool> kCausalOrNot{false, true};

MaskChoice masked(Pattern pattern, double density = 0) {
  MaskChoice choice;
  choice.pattern = pattern;
  choice.density = density;
  return choice;
}

std::vector<Sweep> demo(int all) {
  Sweep sweep;
  sweep.heads_q = {2};
  sweep.seq_q = {512, 1024, 2048, 4096, 8192, 16384};
  sweep.impls = {"auto", "standard"};
  sweep.threads = {all};
  sweep.masks = {masked(Pattern::dense), masked(Pattern::butterfly)};
  return {sweep};
}

std::vector<Sweep> core(int all) {
  Sweep forward;
  forward.seq_q = {512, 1024, 2048, 4096};
  forward.head_dim = {64, 128};
  forward.causal = kCausalOrNot;
  forward.threads = {1, all};
  Sweep backward = forward;
  backward.passes = {Pass::backward};
  backward.seq_q = {4096};
  Sweep peer = forward;
  peer.seq_q = {2048};
  peer.heads_q = {16};
  peer.causal = kNotCausal;
  peer.impls = {"auto", "standard"};
  return {forward, backward, peer};
}

std::vector<Sweep> memory(int all) {
  Sweep sweep;
  sweep.passes = kBothPasses;
  sweep.heads_q = {1};
  sweep.seq_q = {1024, 4096, 16384, 65536};
  sweep.impls = {"auto", "standard"};
  sweep.threads = {all};
  return {sweep};
}

std::vector<Sweep> sparse(int all) {
  Sweep sweep;
  sweep.passes = kBothPasses;
  sweep.heads_q = {2};
  sweep.seq_q = {4096, 8192, 16384};
  sweep.threads = {all};
  sweep.masks = {masked(Pattern::dense),
                 masked(Pattern::butterfly),
                 masked(Pattern::local_global, 0.125),
                 masked(Pattern::random, 0.5),
                 masked(Pattern::random, 0.25),
                 masked(Pattern::random, 0.125),
                 masked(Pattern::random, 0.0625)};
  return {sweep};
}

std::vector<Sweep> backward(int all) {
  Sweep sweep;
  sweep.passes = {Pass::backward};
  sweep.seq_q = {512, 1024, 2048, 4096};
  sweep.head_dim = {64, 128};
  sweep.causal = kCausalOrNot;
  sweep.impls = {"auto", "standard"};
  sweep.threads = {all};
  return {sweep};
}

std::vector<Sweep> dtypes(int all) {
  Sweep sweep;
  sweep.passes = kBothPasses;
  sweep.dtypes = {DType::f32, DType::f16, DType::bf16};
  sweep.seq_q = {1024, 4096};
  sweep.head_dim = {64, 128};
  sweep.threads = {all};
  return {sweep};
}

std::vector<Sweep> decode(int all) {
  Sweep sweep;
  sweep.dtypes = {DType::f32, DType::f16};
  sweep.heads_q = {32};
  sweep.heads_kv = {8};
  sweep.seq_q = {1, 4, 16};
  sweep.seq_kv = {1024, 8192, 32768};
  sweep.head_dim = {128};
  sweep.causal = {true};
  sweep.threads = {all};
  return {sweep};
}

std::vector<Sweep> only_on_a_gpu(int) { return {}; }

struct Entry {
  Suite suite;
  std::vector<Sweep> (*sweeps)(int all_threads);  ///< On the CPU.
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> kEntries{
      {{"demo", "standard, exact and block-sparse attention, 512 to 16k, with plots"}, demo},
      {{"core", "forward and backward: f32 on one thread and all, against standard; bf16 on a GPU"},
       core},
      {{"memory", "extra memory up to 64k, forward and backward"}, memory},
      {{"sparse", "block masks of several patterns and densities beside dense"}, sparse},
      {{"backward", "backward: f32 against standard, bf16 on a GPU"}, backward},
      {{"dtypes", "f32, f16 and bf16, forward and backward"}, dtypes},
      {{"decode", "few queries, long caches of keys and values, grouped heads"}, decode},
      {{"peers", "on a GPU: the shapes that other libraries publish, D 64 to 256, 512 to 16k"},
       only_on_a_gpu},
      {{kTuneSuite,
        "on a Hopper GPU: configs of cuda_sm90's forward pass in turn, and the fastest"},
       only_on_a_gpu},
  };
  return kEntries;
}

// The same number of threads twice would be the same variant twice.
void remove_repetitions(std::vector<int>& threads) {
  std::vector<int> unique;
  for (int n : threads) {
    if (std::find(unique.begin(), unique.end(), n) == unique.end()) unique.push_back(n);
  }
  threads = std::move(unique);
}

}  // namespace

const std::vector<Suite>& suites() {
  static const std::vector<Suite> kSuites = [] {
    std::vector<Suite> list;
    for (const Entry& entry : entries()) list.push_back(entry.suite);
    return list;
  }();
  return kSuites;
}

std::vector<Group> make_suite(const std::string& name, const SuiteChoices& choices) {
  std::vector<Group> groups;
  for (const Entry& entry : entries()) {
    if (name != entry.suite.name) continue;
    for (Sweep& sweep :
         choices.device == DeviceType::cpu ? entry.sweeps(choices.all_threads) : gpu_suite(name)) {
      sweep.suite = name;
      if (!choices.threads.empty()) sweep.threads = choices.threads;
      if (!choices.impls.empty()) sweep.impls = choices.impls;
      remove_repetitions(sweep.threads);
      std::vector<Group> more = expand(sweep);
      groups.insert(groups.end(), more.begin(), more.end());
    }
  }
  return groups;
}

}  // namespace tessera::cli::bench
