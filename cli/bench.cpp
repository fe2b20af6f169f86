// tessera bench: how fast, how near the machine's ceiling, in how much memory.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/blas.hpp"
#include "bench/measure.hpp"
#include "bench/options.hpp"
#include "bench/plot.hpp"
#include "bench/progress.hpp"
#include "bench/record.hpp"
#include "bench/report.hpp"
#include "commands.hpp"
#include "error.hpp"
#include "io/file.hpp"

namespace tessera::cli {
namespace {

using bench::Flags;
using bench::Group;
using bench::Machine;
using bench::Record;

constexpr const char* kDemo = "demo";

// The groups of one suite, which follow one another, make one table.
std::vector<Record> measure_suite(std::span<const Group> groups, bench::Meter& meter,
                                  bench::ProgressBar& bar) {
  std::vector<Record> records;
  std::vector<std::string> notes;
  for (const Group& group : groups) {
    const std::vector<Record> more = meter.measure(
        group, [&](const std::string& label) { bar.step(label); }, notes);
    records.insert(records.end(), more.begin(), more.end());
  }
  bar.erase();
  fmt::print("\n{}\n{}", groups.front().suite, bench::table(records));
  for (const std::string& note : notes) fmt::print("{}\n", note);
  std::fflush(stdout);
  return records;
}

void plot(const std::vector<Record>& records, const Machine& machine, const std::string& prefix) {
  const auto paths = bench::write_plots(records, machine, prefix);
  if (!paths) {
    fmt::print("no plots: gnuplot is not installed\n");
    return;
  }
  fmt::print("plots: {}\n", fmt::join(*paths, " "));
}

// Where the records of a suite are drawn, if at all.
std::string plot_prefix(const Flags& flags, const std::vector<Record>& records) {
  if (flags.no_plot || records.empty() || !bench::can_plot(records)) return "";
  const std::string& suite = records.front().suite;
  if (flags.plot.empty()) return suite == kDemo ? "out/demo" : "";
  return flags.suites.size() > 1 ? fmt::format("{}-{}", flags.plot, suite) : flags.plot;
}

void run_bench(const Flags& flags) {
  const Machine machine = bench::describe_machine();
  const std::vector<Group> groups = bench::to_groups(flags, machine.cpus);
  std::optional<OutputFile> json;
  if (!flags.json.empty()) json.emplace("--json", flags.json);
  std::size_t steps = 0;
  for (const Group& group : groups) steps += group.variants.size();

  fmt::print("{}", bench::heading(machine));
  std::fflush(stdout);
  bench::Meter meter(flags.budget);
  bench::ProgressBar bar(static_cast<int>(steps));
  std::vector<Record> all;
  for (auto first = groups.begin(); first != groups.end();) {
    const auto last = std::find_if(first, groups.end(),
                                   [&](const Group& group) { return group.suite != first->suite; });
    const std::vector<Record> records = measure_suite({first, last}, meter, bar);
    const std::string prefix = plot_prefix(flags, records);
    if (!prefix.empty()) plot(records, machine, prefix);
    all.insert(all.end(), records.begin(), records.end());
    first = last;
  }
  if (!json) return;
  const std::string text = bench::to_json(all, machine);
  const std::span<const std::byte> piece = std::as_bytes(std::span(text));
  json->write({&piece, 1});
  json->commit();
  fmt::print("records: {}\n", json->path());
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
