// tessera bench: how fast, how near the machine's ceiling, in how much memory.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/gpu_measure.hpp"
#include "bench/measure.hpp"
#include "bench/options.hpp"
#include "bench/plot.hpp"
#include "bench/record.hpp"
#include "bench/report.hpp"
#include "bench/tune.hpp"
#include "commands.hpp"
#include "error.hpp"
#include "flags.hpp"
#include "io/file.hpp"
#include "progress.hpp"

namespace tessera::cli {
namespace {

using bench::Flags;
using bench::Group;
using bench::Machine;
using bench::Record;

constexpr const char* kDemo = "demo";

// The groups of one suite, which follow one another, make one table.
std::vector<Record> measure_suite(std::span<const Group> groups, bench::Meter& meter,
                                  ProgressBar& bar) {
  std::vector<Record> records;
  std::vector<std::string> notes;
  for (const Group& group : groups) {
    const std::vector<Record> more = meter.measure(
        group, [&](const std::string& label) { bar.step(label); }, notes);
    records.insert(records.end(), more.begin(), more.end());
  }
  bar.erase();
  fmt::print("\n{}\n{}", groups.front().suite, bench::table(records));
  notes.erase(std::unique(notes.begin(), notes.end()), notes.end());
  for (const std::string& note : notes) fmt::print("{}\n", note);
  if (groups.front().suite == bench::kTuneSuite) fmt::print("{}", bench::tuned_table(records));
  fmt::print("{}", bench::disturbance(records));
  std::fflush(stdout);
  return records;
}

// Where the records of a suite are drawn; "" for nowhere.
std::string plot_prefix(const Flags& flags, const std::string& suite) {
  if (flags.no_plot) return "";
  if (flags.plot.empty()) return suite == kDemo ? "out/demo" : "";
  return flags.suites.size() > 1 ? fmt::format("{}-{}", flags.plot, suite) : flags.plot;
}

void plot(const std::vector<Record>& records, const Machine& machine, const std::string& prefix) {
  if (!bench::can_plot(records)) {
    fmt::print("no plots of {}: it has one sequence length\n", records.front().suite);
    return;
  }
  const auto paths = bench::write_plots(records, machine, prefix);
  if (!paths) {
    fmt::print("no plots: gnuplot is not installed\n");
    return;
  }
  fmt::print("plots: {}\n", fmt::join(*paths, " "));
}

void write_json(OutputFile& file, const std::vector<std::vector<Record>>& suites,
                const Machine& machine) {
  std::vector<Record> all;
  for (const auto& records : suites) all.insert(all.end(), records.begin(), records.end());
  const std::string text = bench::to_json(all, machine);
  const std::span<const std::byte> piece = std::as_bytes(std::span(text));
  file.write({&piece, 1});
  file.commit();
  fmt::print("records: {}\n", file.path());
}

// Groups of one suite follow one another; each such run is one table.
std::vector<std::span<const Group>> by_suite(const std::vector<Group>& groups) {
  std::vector<std::span<const Group>> suites;
  for (auto first = groups.begin(); first != groups.end();) {
    const auto last = std::find_if(first, groups.end(),
                                   [&](const Group& group) { return group.suite != first->suite; });
    suites.emplace_back(first, last);
    first = last;
  }
  return suites;
}

std::unique_ptr<bench::Meter> make_meter(Device device, double budget_seconds) {
  if (device.type == DeviceType::cpu) return std::make_unique<bench::CpuMeter>(budget_seconds);
  return std::make_unique<bench::GpuMeter>(device, budget_seconds);
}

void run_bench(const Flags& flags) {
  const Device device = to_device(flags.device);
  const Machine machine = bench::describe_machine(device);
  const std::vector<Group> groups = bench::to_groups(flags, machine.cpus);
  const std::vector<std::span<const Group>> suites = by_suite(groups);
  // What cannot be written is told before minutes of measuring.
  std::optional<OutputFile> json;
  if (!flags.json.empty()) json.emplace("--json", flags.json);
  std::size_t steps = 0;
  for (std::span<const Group> suite : suites) {
    const std::string prefix = plot_prefix(flags, suite.front().suite);
    if (!prefix.empty()) bench::check_plot_prefix(prefix);
    for (const Group& group : suite) steps += group.variants.size();
  }

  fmt::print("{}", bench::heading(machine));
  std::fflush(stdout);
  const std::unique_ptr<bench::Meter> meter = make_meter(device, flags.budget);
  ProgressBar bar(static_cast<int>(steps));
  std::vector<std::vector<Record>> measured;
  for (std::span<const Group> suite : suites) measured.push_back(measure_suite(suite, *meter, bar));
  if (json) write_json(*json, measured, machine);
  for (const std::vector<Record>& records : measured) {
    if (records.empty()) continue;
    const std::string prefix = plot_prefix(flags, records.front().suite);
    if (!prefix.empty()) plot(records, machine, prefix);
  }
}

}  // namespace

void add_bench_command(CLI::App& app, int&) {
  CLI::App* command = app.add_subcommand(
      "bench", "Time attention against the machine's ceiling and against standard attention");
  command->footer(bench::suite_list() +
                  "Example: tessera bench core --json core.json\n"
                  "Example: tessera bench --seq 1024,4096 --head-dim 128 --pass both --threads 1,2 "
                  "--impl auto,standard");
  const auto flags = std::make_shared<Flags>();
  bench::add_flags(*command, *flags);
  command->callback([flags] { run_bench(*flags); });
}

}  // namespace tessera::cli
