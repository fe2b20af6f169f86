// The command line of `tessera bench`, read and checked.
#pragma once

#include <string>
#include <vector>

#include "bench/problem.hpp"

namespace CLI {
class App;
}

namespace tessera::cli::bench {

/// The flags as given; lists hold each value of `A,B,C`.
struct Flags {
  std::vector<std::string> suites;
  std::vector<std::int64_t> batch, heads, heads_kv, seq, seq_kv, head_dim, head_dim_v;
  std::vector<std::string> dtypes, passes, patterns, precisions, impls;
  std::vector<double> densities;
  std::vector<int> threads;
  std::string causal, window, block_size;
  std::string device = "cpu";
  double budget = 0.5;
  std::string json;
  std::string plot;
  bool no_plot = false;
};

void add_flags(CLI::App& command, Flags& flags);

/// The suites, one line each, for the help.
std::string suite_list();

/// What the flags ask for, in order: the groups of the suites, or of the free shapes. Throws Error
/// for values that are wrong or contradict one another.
std::vector<Group> to_groups(const Flags& flags, int all_threads);

}  // namespace tessera::cli::bench
