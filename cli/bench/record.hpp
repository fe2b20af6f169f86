// What one variant of one case measured.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bench/problem.hpp"

namespace tessera::cli::bench {

/// One line of the table and of the JSON list.
struct Record {
  std::string suite;
  Device device;
  Case problem;
  Variant variant;
  std::string impl;                ///< The row that ran, or "standard".
  double density = 1;              ///< Listed over all blocks; 1 without a block mask.
  double flops = 0;                ///< Counted operations of one run.
  int samples = 0;                 ///< Timed samples.
  double ms = 0;                   ///< Median time of a run.
  double ms_min = 0;               ///< Shortest.
  std::string ceiling;             ///< Whose rate it is: "avx2", "bf16 matrix product".
  double ceiling_gflops = 0;       ///< Median of what was measured beside the samples; 0: unknown.
  double ceiling_gflops_best = 0;  ///< The fastest of them.
  double waited = 0;               ///< Share of its threads' time without a free CPU.
  std::int64_t peak_extra_bytes = 0;  ///< Beyond inputs and outputs.
  std::int64_t workspace_bytes = 0;   ///< Of which set aside before the run.
  double copy_gbytes_per_s = 0;       ///< Copy bandwidth with as many threads.
  std::optional<double> blocks;       ///< Listed blocks, all heads, if there is a block mask.
  std::optional<double> speedup_over_standard;    ///< Same threads, dense, where both were timed.
  std::optional<double> speedup_over_one_thread;  ///< Same implementation and mask.
  std::optional<double> speedup_over_dense;       ///< Same implementation and threads.

  double gflops() const { return flops / ms * 1e-6; }
  double share() const { return gflops() / ceiling_gflops; }
  /// The fastest sample against the fastest burst: what is left of `share` when other programs on
  /// the machine take no part in it.
  double share_best() const { return flops / ms_min * 1e-6 / ceiling_gflops_best; }
  /// Inputs and outputs, each once, over the time.
  double gbytes_per_s() const {
    return static_cast<double>(input_output_bytes(problem)) / ms * 1e-6;
  }
};

/// A record of what there is to do: everything but the implementation and what is measured. `mask`
/// is the variant's block mask or null.
Record count_work(const Group& group, const Variant& variant, const BlockMask* mask);

/// Fills in the speed-ups among the records of one group.
void compare(std::vector<Record>& group);

/// What holds for a whole run of the benchmark.
struct Machine {
  std::string date;     ///< ISO 8601, UTC.
  std::string cpu;      ///< The CPU's model name.
  int cpus = 1;         ///< CPUs this process may use.
  std::string version;  ///< Tessera's.
  std::string commit;   ///< Its source's commit at configure time, or "".
  std::string blas;
  std::string gpu{};     ///< The GPU's name where one is measured, else "".
  std::string driver{};  ///< Its driver's version.
};

/// Asks the system, and the device that is measured.
Machine describe_machine(Device device);

/// The records as a JSON list, one object each, indented.
std::string to_json(const std::vector<Record>& records, const Machine& machine);

}  // namespace tessera::cli::bench
