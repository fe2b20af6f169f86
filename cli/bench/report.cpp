#include "bench/report.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <optional>

#include "table.hpp"

namespace tessera::cli::bench {
namespace {

// Few queries read keys and values once and do little with them: memory is their ceiling.
constexpr std::int64_t kFewQueries = 16;

struct Field {
  Column column;
  std::function<std::string(const Record&)> text;
};

std::string factor(const std::optional<double>& value) {
  return value ? fmt::format("{:.2f}x", *value) : "";
}

bool on_gpu(const Record& r) { return r.device.type == DeviceType::cuda; }

std::string rate(double value) { return fmt::format("{:.1f}", value); }

std::string share_text(const Record& r, double share) {
  return r.ceiling_gflops > 0 ? fmt::format("{:.1f}%", 100 * share) : "";
}

std::string mask_text(const Record& r) {
  const std::string label = mask_label(r.problem, r.variant.mask);
  const bool dense = r.variant.mask.pattern == Pattern::dense;
  return dense ? label : fmt::format("{} {:.1f}%", label, 100 * r.density);
}

std::vector<Field> fields() {
  const auto left = [](const char* title) { return Column{title, Align::left}; };
  const auto right = [](const char* title) { return Column{title, Align::right}; };
  return {
      {left("pass"), [](const Record& r) { return name_of(r.problem.pass); }},
      {left("dtype"), [](const Record& r) { return name_of(r.problem.dtype); }},
      {left("BxHxSxD"), [](const Record& r) { return shape_label(r.problem); }},
      {left("mask"), mask_text},
      {right("threads"),
       [](const Record& r) { return on_gpu(r) ? "" : fmt::format("{}", r.variant.threads); }},
      {left("impl"), [](const Record& r) { return r.impl; }},
      {left("config"), [](const Record& r) { return r.variant.config; }},
      {left("precision"),
       [](const Record& r) {
         const bool exact = r.variant.precision == Precision::exact;
         return exact ? "" : tessera::name_of(r.variant.precision);
       }},
      {right("ms"), [](const Record& r) { return format_ms(r.ms); }},
      {right("GFLOP/s"), [](const Record& r) { return on_gpu(r) ? "" : rate(r.gflops()); }},
      {right("TFLOP/s"), [](const Record& r) { return on_gpu(r) ? rate(r.gflops() / 1e3) : ""; }},
      {right("ceiling"),
       [](const Record& r) {
         if (!on_gpu(r)) return rate(r.ceiling_gflops);
         return r.ceiling_gflops > 0 ? rate(r.ceiling_gflops / 1e3) : "unknown";
       }},
      {right("share"), [](const Record& r) { return share_text(r, r.share()); }},
      {right("at best"), [](const Record& r) { return share_text(r, r.share_best()); }},
      {right("GB/s"),
       [](const Record& r) {
         return r.problem.seq_q > kFewQueries ? "" : fmt::format("{:.1f}", r.gbytes_per_s());
       }},
      {right("of copy"),
       [](const Record& r) {
         if (r.problem.seq_q > kFewQueries) return std::string();
         return fmt::format("{:.1f}%", 100 * r.gbytes_per_s() / r.copy_gbytes_per_s);
       }},
      {right("in+out"),
       [](const Record& r) { return format_bytes(input_output_bytes(r.problem)); }},
      {right("extra"), [](const Record& r) { return format_bytes(r.peak_extra_bytes); }},
      {right("vs standard"), [](const Record& r) { return factor(r.speedup_over_standard); }},
      {right("vs 1 thread"), [](const Record& r) { return factor(r.speedup_over_one_thread); }},
      {right("vs dense"), [](const Record& r) { return factor(r.speedup_over_dense); }},
      {right("us/block"),
       [](const Record& r) { return r.blocks ? format_ms(r.ms * 1e3 / *r.blocks) : ""; }},
  };
}

}  // namespace

std::string heading(const Machine& machine) {
  const std::string commit = machine.commit.empty() ? "" : fmt::format(" ({})", machine.commit);
  if (!machine.gpu.empty()) {
    return fmt::format(
        "tessera {}{} on {}, driver {}, {}\n"
        "ceiling: TFLOP/s of an 8192x8192x8192 matrix product in the same dtype through cuBLASLt, "
        "measured beside each case\n"
        "times by events, L2 flushed before each run; share: medians of time and ceiling; at best: "
        "the fastest of both\n",
        machine.version, commit, machine.gpu, machine.driver, machine.date);
  }
  return fmt::format(
      "tessera {}{} on {}, {} CPU{}, BLAS: {}, {}\n"
      "ceiling: GFLOP/s of multiply-adds in registers, same instruction set and threads, measured "
      "beside each case\n"
      "share: medians of time and ceiling; at best: the fastest of both\n",
      machine.version, commit, machine.cpu, machine.cpus, machine.cpus == 1 ? "" : "s",
      machine.blas, machine.date);
}

std::string table(const std::vector<Record>& records) {
  std::vector<Field> used = fields();
  const auto empty = [&](const Field& field) {
    return std::all_of(records.begin(), records.end(),
                       [&](const Record& r) { return field.text(r).empty(); });
  };
  used.erase(std::remove_if(used.begin(), used.end(), empty), used.end());
  std::vector<Column> columns;
  for (const Field& field : used) columns.push_back(field.column);
  Table text(columns);
  for (const Record& r : records) {
    std::vector<std::string> cells;
    for (const Field& field : used) cells.push_back(field.text(r));
    text.add(std::move(cells));
  }
  return text.to_string();
}

std::string disturbance(const std::vector<Record>& records) {
  constexpr double kTolerable = 0.05;
  double worst = 0;
  for (const Record& r : records) {
    if (r.impl != "standard") worst = std::max(worst, r.waited);  // BLAS's own threads may compete
  }
  if (worst <= kTolerable) return "";
  return fmt::format(
      "disturbed: other programs had the CPUs for up to {:.0f}% of these runs' time, so shares are "
      "too low\n",
      100 * worst);
}

std::string format_ms(double ms) {
  if (ms >= 1000) return fmt::format("{:.0f}", ms);
  return fmt::format("{:.{}f}", ms, ms >= 100 ? 1 : ms >= 10 ? 2 : ms >= 1 ? 3 : 4);
}

std::string format_bytes(std::int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  const bool whole = unit == 0 || value >= 100;
  return fmt::format("{:.{}f} {}", value, whole ? 0 : value >= 10 ? 1 : 2, kUnits[unit]);
}

}  // namespace tessera::cli::bench
