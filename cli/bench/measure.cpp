#include "bench/measure.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <numeric>
#include <optional>
#include <thread>

#include "bench/ceiling.hpp"
#include "bench/contender.hpp"
#include "bench/cpu_wait.hpp"
#include "bench/memory_probe.hpp"
#include "bench/statistics.hpp"
#include "error.hpp"

namespace tessera::cli::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kBurstSeconds = 0.002;
constexpr double kShortestSample = 0.002;
constexpr double kLongRun = 2.0;
constexpr std::size_t kFewestSamples = 3;
constexpr std::size_t kMostSamples = 200;
// OpenBLAS's threads wait for more work in a busy loop, for a tenth of a second and longer. Whoever
// runs next would share the CPUs with them: they are given time until they sleep.
constexpr std::chrono::milliseconds kSettle{10};
constexpr int kMostSettles = 50;
constexpr double kAsleep = 0.1;  // share of a CPU that this process may use then

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string label_of(const Group& group, const Variant& variant) {
  return fmt::format("{} {} {} {}, {} thread{}", variant.impl, name_of(group.problem.pass),
                     shape_label(group.problem), mask_label(group.problem, variant.mask),
                     variant.threads, variant.threads == 1 ? "" : "s");
}

}  // namespace

// One variant while its group is being measured.
struct CpuMeter::Running {
  Variant variant;
  std::optional<BlockMask> mask;
  std::unique_ptr<Contender> contender;
  std::int64_t peak_bytes = 0;
  std::int64_t runs_per_sample = 1;
  std::size_t fewest_samples = kFewestSamples;
  std::vector<double> seconds;  // of one run, sample by sample
  std::vector<double> ceilings;
  CpuTimes cpu;  // during the samples

  double spent() const {
    return static_cast<double>(runs_per_sample) *
           std::accumulate(seconds.begin(), seconds.end(), 0.0);
  }
  bool done(double budget) const {
    return seconds.size() >= fewest_samples &&
           (spent() >= budget || seconds.size() >= kMostSamples);
  }
};

Team& CpuMeter::team(int threads) {
  std::unique_ptr<Team>& team = teams_[threads];
  if (team == nullptr) team = std::make_unique<Team>(threads);
  return *team;
}

double CpuMeter::copy_bandwidth(int threads) {
  const auto [entry, is_new] = copy_bandwidths_.try_emplace(threads, 0.0);
  if (is_new) entry->second = copy_gbytes_per_second(team(threads));
  return entry->second;
}

void CpuMeter::sample(Running& r) {
  Team& ceiling_team = team(r.variant.threads);
  const Isa isa = r.contender->isa();
  r.ceilings.push_back(multiply_add_gflops(isa, ceiling_team, kBurstSeconds));
  // While the ceiling was measured, the contender's threads fell asleep.
  if (r.runs_per_sample > 1) r.contender->run();
  const CpuTimes before = cpu_times();
  const Clock::time_point start = Clock::now();
  for (std::int64_t i = 0; i < r.runs_per_sample; ++i) r.contender->run();
  r.seconds.push_back(seconds_since(start) / static_cast<double>(r.runs_per_sample));
  r.cpu = r.cpu + (cpu_times() - before);
  r.ceilings.push_back(multiply_add_gflops(isa, ceiling_team, kBurstSeconds));
  settle(r);
}

void CpuMeter::settle(const Running& r) {
  if (r.variant.impl != "standard" || r.variant.threads == 1) return;
  for (int i = 0; i < kMostSettles; ++i) {
    const std::clock_t before = std::clock();  // of all threads of the process
    const Clock::time_point start = Clock::now();
    std::this_thread::sleep_for(kSettle);
    const double used = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
    if (used < kAsleep * seconds_since(start)) return;
  }
}

void CpuMeter::prepare(Running& r, const Case& problem, Tensors& tensors) {
  const MemoryProbe probe;
  r.contender = make_contender(problem, r.variant, r.mask ? &*r.mask : nullptr, tensors);
  Clock::time_point start = Clock::now();
  r.contender->run();
  double run_seconds = seconds_since(start);
  r.peak_bytes = std::max(probe.peak_bytes().value_or(0), r.contender->workspace_bytes());
  if (run_seconds < kLongRun) {  // the first run also pays for memory, caches and threads
    start = Clock::now();
    r.contender->run();
    run_seconds = seconds_since(start);
  }
  r.runs_per_sample =
      std::max<std::int64_t>(1, std::llround(kShortestSample / std::max(run_seconds, 1e-9)));
  if (run_seconds > std::max(kLongRun, budget_seconds_)) r.fewest_samples = 1;
  settle(r);
}

std::vector<Record> CpuMeter::measure(const Group& group, const Progress& progress,
                                      std::vector<std::string>& notes) {
  const Case& problem = group.problem;
  Tensors tensors(problem);
  std::vector<Running> all;
  for (const Variant& variant : group.variants) {
    progress(label_of(group, variant));
    const std::string refusal = variant.impl == "standard" ? standard_refusal(problem)
                                                           : row_refusal(problem, variant, tensors);
    if (!refusal.empty()) {
      notes.push_back(refusal);
      continue;
    }
    Running& r = all.emplace_back();
    r.variant = variant;
    r.mask = build_mask(problem, variant.mask);
    if (problem.pass == Pass::backward && all.size() == 1) {
      run_forward(problem, r.mask ? &*r.mask : nullptr, tensors);
    }
    prepare(r, problem, tensors);
  }
  for (bool any = true; any;) {
    any = false;
    for (Running& r : all) {
      if (r.done(budget_seconds_)) continue;
      sample(r);
      any = true;
    }
  }
  std::vector<Record> records;
  for (const Running& r : all) {
    Record& record = records.emplace_back(to_record(group, r));
    record.copy_gbytes_per_s = copy_bandwidth(r.variant.threads);
  }
  compare(records);
  return records;
}

Record CpuMeter::to_record(const Group& group, const Running& r) {
  Record record = count_work(group, r.variant, r.mask ? &*r.mask : nullptr);
  record.impl = r.contender->name();
  record.samples = static_cast<int>(r.seconds.size());
  record.ms = median(r.seconds) * 1e3;
  record.ms_min = minimum(r.seconds) * 1e3;
  record.ceiling = name_of(r.contender->isa());
  record.ceiling_gflops = median(r.ceilings);
  record.ceiling_gflops_best = maximum(r.ceilings);
  record.waited = waiting_share(r.cpu);
  record.peak_extra_bytes = r.peak_bytes;
  record.workspace_bytes = r.contender->workspace_bytes();
  return record;
}

}  // namespace tessera::cli::bench
