// Times the variants of a group in turn: what a meter is, and the CPU's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/contender.hpp"
#include "bench/problem.hpp"
#include "bench/record.hpp"
#include "bench/team.hpp"

namespace tessera::cli::bench {

/// Measures groups on one device.
class Meter {
 public:
  virtual ~Meter() = default;

  /// Called with what a variant is about to do, before each.
  using Progress = std::function<void(const std::string& label)>;

  /// One record per variant that ran, in order. What could not be measured, such as variants of
  /// standard attention that do not run, adds a line to `notes`. Throws Error if a row of the table
  /// does not accept the case.
  virtual std::vector<Record> measure(const Group& group, const Progress& progress,
                                      std::vector<std::string>& notes) = 0;
};

/// Keeps the teams that measure ceilings from group to group.
class CpuMeter final : public Meter {
 public:
  /// Each variant is timed until its samples add up to `budget_seconds`, at least three times
  /// (once, if a run takes longer than two seconds and the budget).
  explicit CpuMeter(double budget_seconds) : budget_seconds_(budget_seconds) {}

  std::vector<Record> measure(const Group& group, const Progress& progress,
                              std::vector<std::string>& notes) override;

 private:
  struct Running;

  Team& team(int threads);
  double copy_bandwidth(int threads);
  void prepare(Running& running, const Case& problem, Tensors& tensors);
  void sample(Running& running);
  static void settle(const Running& running);
  static Record to_record(const Group& group, const Running& running);

  double budget_seconds_;
  std::map<int, std::unique_ptr<Team>> teams_;
  std::map<int, double> copy_bandwidths_;
};

}  // namespace tessera::cli::bench
