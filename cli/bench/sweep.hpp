// Lists of values to the groups of every combination; and the named suites.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/problem.hpp"

namespace tessera::cli::bench {

/// Every combination of its lists is measured. An empty list means: as the one it pairs with
/// (heads_kv as heads_q, seq_kv as seq_q, head_dim_v as head_dim). Implementations, threads,
/// masks and precisions are variants of a group; the rest makes groups.
struct Sweep {
  std::string suite = "free";
  std::vector<Pass> passes{Pass::forward};
  std::vector<DType> dtypes{DType::f32};
  std::vector<std::int64_t> batch{1};
  std::vector<std::int64_t> heads_q{4};
  std::vector<std::int64_t> heads_kv;
  std::vector<std::int64_t> seq_q{1024};
  std::vector<std::int64_t> seq_kv;
  std::vector<std::int64_t> head_dim{64};
  std::vector<std::int64_t> head_dim_v;
  std::vector<bool> causal{false};
  Window window;
  std::vector<std::string> impls{"auto"};
  std::vector<int> threads{1};
  std::vector<MaskChoice> masks{MaskChoice{}};
  std::vector<Precision> precisions{Precision::exact};
};

/// The groups, shapes in the order of the lists with the sequence lengths varying fastest. Standard
/// attention takes part without block masks and in exact precision only. Throws Error if heads_q is
/// not a multiple of heads_kv.
std::vector<Group> expand(const Sweep& sweep);

/// A named suite.
struct Suite {
  const char* name;
  const char* about;
};

/// All of them, in the order in which help lists them.
const std::vector<Suite>& suites();

/// What a suite's caller may choose.
struct SuiteChoices {
  DeviceType device = DeviceType::cpu;
  std::vector<int> threads;        ///< Empty: the suite's own.
  std::vector<std::string> impls;  ///< Empty: the suite's own.
  int all_threads = 1;             ///< What "all threads" means here.
};

/// The groups of the suite `name`, which must be one of `suites()`; none if the device has no such
/// suite. A suite asks the same of every device, at sizes that suit it.
std::vector<Group> make_suite(const std::string& name, const SuiteChoices& choices);

/// The sweeps of a suite on a GPU.
std::vector<Sweep> gpu_suite(const std::string& name);

}  // namespace tessera::cli::bench
