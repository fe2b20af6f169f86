// The suites at the sizes of a GPU.
#include "bench/sweep.hpp"
#include "bench/tune.hpp"

namespace tessera::cli::bench {
namespace {

const std::vector<Pass> kBothPasses{Pass::forward, Pass::backward};

// As the FlashAttention papers choose shapes: as many tokens whatever their sequences' length, as
// wide a model whatever its heads'.
constexpr std::int64_t kTokens = 16384;
constexpr std::int64_t kWidth = 2048;

Sweep in_bf16() {
  Sweep sweep;
  sweep.dtypes = {DType::bf16};
  return sweep;
}

// Sweeps of `like` for every head dim, its heads making the width, and every sequence length, its
// batch making the tokens; passes and head dims vary slowest.
std::vector<Sweep> grid(const Sweep& like, const std::vector<std::int64_t>& head_dims,
                        const std::vector<std::int64_t>& sequences) {
  std::vector<Sweep> sweeps;
  for (Pass pass : like.passes) {
    for (std::int64_t head_dim : head_dims) {
      for (bool causal : like.causal) {
        for (std::int64_t seq : sequences) {
          Sweep& sweep = sweeps.emplace_back(like);
          sweep.passes = {pass};
          sweep.causal = {causal};
          sweep.head_dim = {head_dim};
          sweep.heads_q = {kWidth / head_dim};
          sweep.seq_q = {seq};
          sweep.batch = {kTokens / seq};
        }
      }
    }
  }
  return sweeps;
}

MaskChoice masked(Pattern pattern, double density = 0) {
  MaskChoice choice;
  choice.pattern = pattern;
  choice.density = density;
  return choice;
}

std::vector<Sweep> demo() {
  Sweep sweep = in_bf16();
  sweep.heads_q = {16};
  sweep.head_dim = {128};
  sweep.seq_q = {1024, 2048, 4096, 8192, 16384, 32768, 65536};
  sweep.masks = {masked(Pattern::dense), masked(Pattern::butterfly)};
  return {sweep};
}

std::vector<Sweep> core() {
  Sweep sweep = in_bf16();
  sweep.passes = kBothPasses;
  sweep.causal = {false, true};
  return grid(sweep, {64, 128}, {1024, 4096, 16384});
}

std::vector<Sweep> memory() {
  Sweep sweep = in_bf16();
  sweep.passes = kBothPasses;
  sweep.heads_q = {1};
  sweep.seq_q = {1024, 4096, 16384, 65536, 131072};
  return {sweep};
}

std::vector<Sweep> sparse() {
  Sweep sweep = in_bf16();
  sweep.passes = kBothPasses;
  sweep.masks = {masked(Pattern::dense),
                 masked(Pattern::butterfly),
                 masked(Pattern::local_global, 0.25),
                 masked(Pattern::local_global, 0.0625),
                 masked(Pattern::random, 0.25),
                 masked(Pattern::random, 0.0625)};
  return grid(sweep, {64, 128}, {kTokens});
}

std::vector<Sweep> backward() {
  Sweep sweep = in_bf16();
  sweep.passes = {Pass::backward};
  sweep.causal = {false, true};
  return grid(sweep, {64, 128, 256}, {1024, 4096, 16384});
}

std::vector<Sweep> dtypes() {
  Sweep sweep;
  sweep.passes = kBothPasses;
  sweep.dtypes = {DType::f32, DType::f16, DType::bf16};
  return grid(sweep, {64, 128}, {1024, 4096});
}

std::vector<Sweep> decode() {
  Sweep sweep = in_bf16();
  sweep.batch = {8};
  sweep.heads_q = {64};
  sweep.heads_kv = {8};
  sweep.head_dim = {128};
  sweep.causal = {true};
  sweep.seq_q = {1, 4, 16};
  sweep.seq_kv = {8192, 65536};
  return {sweep};
}

std::vector<Sweep> peers() {
  Sweep sweep = in_bf16();
  sweep.passes = kBothPasses;
  sweep.causal = {false, true};
  return grid(sweep, {64, 128, 256}, {512, 1024, 2048, 4096, 8192, 16384});
}

std::vector<Sweep> tune_sm90() {
  Sweep sweep = in_bf16();
  sweep.causal = {false, true};
  return grid(sweep, {64, 128, 256}, {512, 1024, 2048, 4096, 8192, 16384});
}

}  // namespace

std::vector<Sweep> gpu_suite(const std::string& name) {
  if (name == "demo") return demo();
  if (name == "core") return core();
  if (name == "memory") return memory();
  if (name == "sparse") return sparse();
  if (name == "backward") return backward();
  if (name == "dtypes") return dtypes();
  if (name == "decode") return decode();
  if (name == "peers") return peers();
  if (name == kTuneSuite) return tune_sm90();
  return {};
}

}  // namespace tessera::cli::bench
