#include "bench/plot.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <set>
#include <span>
#include <system_error>
#include <utility>

#include "error.hpp"
#include "gnuplot.hpp"
#include "io/file.hpp"

namespace tessera::cli::bench {
namespace {

namespace fs = std::filesystem;

std::string method_text(const Record& r) {
  if (r.impl == "standard") return "standard";
  const MaskChoice& mask = r.variant.mask;
  if (mask.pattern == Pattern::dense) return fmt::format("exact ({})", r.impl);
  const std::string aim = mask.density > 0 ? fmt::format(" {:g}%", 100 * mask.density) : "";
  return fmt::format("block-sparse {}{} ({})", name_of(mask.pattern), aim, r.impl);
}

std::string visibility_text(const Record& r) {
  const std::string label = mask_label(r.problem, MaskChoice{});
  return label == "dense" ? "non-causal" : label;
}

std::string counted(std::int64_t count, const char* noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

std::string heads_text(const Record& r) {
  const Case& p = r.problem;
  if (p.heads_q == p.heads_kv) return counted(p.heads_q, "head");
  return fmt::format("{}/{} heads", p.heads_q, p.heads_kv);
}

std::string head_dim_text(const Record& r) {
  const Case& p = r.problem;
  if (p.head_dim == p.head_dim_v) return fmt::format("D {}", p.head_dim);
  return fmt::format("D {}/{}", p.head_dim, p.head_dim_v);
}

using Facet = std::function<std::string(const Record&)>;

// What may differ between curves, beside the method, which every title names.
std::vector<Facet> facets() {
  return {
      [](const Record& r) { return name_of(r.problem.pass); },
      [](const Record& r) { return name_of(r.problem.dtype); },
      visibility_text,
      [](const Record& r) { return fmt::format("batch {}", r.problem.batch); },
      heads_text,
      head_dim_text,
      [](const Record& r) { return counted(r.variant.threads, "thread"); },
  };
}

bool is_common(const std::vector<Record>& records, const Facet& facet) {
  return std::all_of(records.begin(), records.end(),
                     [&](const Record& r) { return facet(r) == facet(records.front()); });
}

std::string seq_text(std::int64_t seq) {
  return seq >= 1024 && seq % 1024 == 0 ? fmt::format("{}k", seq / 1024) : fmt::format("{}", seq);
}

std::vector<std::string> tics(const std::set<std::int64_t>& lengths) {
  std::vector<std::string> list;
  for (std::int64_t seq : lengths)
    list.push_back(fmt::format("{} {}", plot_string(seq_text(seq)), seq));
  return list;
}

struct Range {
  double low = 0.1;
  double high = 10;
};

// A decade at least, and room above the highest value for a legend of `lines` lines.
Range value_range(const std::set<double>& values, std::size_t lines) {
  if (values.empty()) return {};
  const double low = *values.begin() / 1.5;
  const double span = std::max(10.0, *values.rbegin() / low);
  const double legend = std::min(0.5, 0.05 * static_cast<double>(lines) + 0.03);
  return {low, low * std::pow(span, 1 / (1 - legend))};
}

}  // namespace

std::vector<Series> series_of(const std::vector<Record>& records) {
  std::vector<Facet> varying{method_text};
  for (const Facet& facet : facets()) {
    if (!is_common(records, facet)) varying.push_back(facet);
  }
  std::vector<Series> all;
  for (const Record& r : records) {
    std::vector<std::string> parts;
    for (const Facet& facet : varying) parts.push_back(facet(r));
    const std::string title = fmt::format("{}", fmt::join(parts, ", "));
    auto series = std::find_if(all.begin(), all.end(),
                               [&](const Series& other) { return other.title == title; });
    if (series == all.end()) series = all.insert(all.end(), Series{title, {}, {}, {}});
    const auto place = std::lower_bound(series->seq.begin(), series->seq.end(), r.problem.seq_kv) -
                       series->seq.begin();
    series->seq.insert(series->seq.begin() + place, r.problem.seq_kv);
    series->ms.insert(series->ms.begin() + place, r.ms);
    series->extra_bytes.insert(series->extra_bytes.begin() + place,
                               static_cast<double>(r.peak_extra_bytes));
  }
  return all;
}

std::string common_label(const std::vector<Record>& records) {
  std::vector<std::string> parts;
  for (const Facet& facet : facets()) {
    if (is_common(records, facet)) parts.push_back(facet(records.front()));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string plot_script(Quantity quantity, const std::vector<Series>& series,
                        const std::string& subtitle, const std::string& output) {
  const bool runtime = quantity == Quantity::runtime;
  std::set<std::int64_t> lengths;
  std::set<double> values;
  std::string data;
  std::vector<std::string> curves;
  for (std::size_t s = 0; s < series.size(); ++s) {
    data += fmt::format("$series{} << EOD\n", s);
    for (std::size_t i = 0; i < series[s].seq.size(); ++i) {
      const double value = runtime ? series[s].ms[i] : series[s].extra_bytes[i] / (1 << 20);
      lengths.insert(series[s].seq[i]);
      if (!(value > 0)) continue;  // has no place on a logarithmic axis
      values.insert(value);
      data += fmt::format("{} {}\n", series[s].seq[i], value);
    }
    data += "EOD\n";
    curves.push_back(
        fmt::format("$series{} using 1:2 with linespoints lw 2.5 ps 1.6 pt {} lc rgb '{}' title {}",
                    s, kPlotPoints[s % kPlotPoints.size()], kPlotColours[s % kPlotColours.size()],
                    plot_string(series[s].title)));
  }
  const Range y = value_range(values, series.size());
  return fmt::format(
      "set encoding utf8\n"
      "set terminal {}\n"
      "set output {}\n"
      "set title {} offset 0,1.4\n"
      "set label 1 {} at graph 0.5,1.045 center font ',{}' tc rgb '#555555'\n"
      "set tmargin 5\n"
      "set logscale x 2\n"
      "set logscale y 10\n"
      "set xrange [{:g}:{:g}]\n"
      "set yrange [{:g}:{:g}]\n"
      "set xtics ({}) nomirror\n"
      "set ytics format '%g' nomirror\n"
      "set border 3 lc rgb '#444444'\n"
      "set grid xtics ytics lc rgb '#bbbbbb' lw 1\n"
      "set xlabel 'sequence length'\n"
      "set ylabel {}\n"
      "set key top left reverse Left spacing 1.2 samplen 2.5\n"
      "{}plot {}\n",
      plot_terminal(output), plot_string(output),
      plot_string(runtime ? "Attention: time by sequence length"
                          : "Attention: memory beyond inputs and outputs by sequence length"),
      plot_string(subtitle), is_svg(output) ? 13 : 16, static_cast<double>(*lengths.begin()) / 1.15,
      static_cast<double>(*lengths.rbegin()) * 1.15, y.low, y.high, fmt::join(tics(lengths), ", "),
      plot_string(runtime ? "time of one pass (ms)" : "extra memory, peak (MiB)"), data,
      fmt::join(curves, ", \\\n     "));
}

bool can_plot(const std::vector<Record>& records) {
  return std::any_of(records.begin(), records.end(), [&](const Record& r) {
    return r.problem.seq_kv != records.front().problem.seq_kv;
  });
}

void check_plot_prefix(const std::string& prefix) { check_plot(prefix, prefix + "-runtime.png"); }

std::optional<std::vector<std::string>> write_plots(const std::vector<Record>& records,
                                                    const Machine& machine,
                                                    const std::string& prefix) {
  const std::vector<Series> series = series_of(records);
  const std::string subtitle =
      fmt::format("{}; {}, {}, {}", common_label(records), machine.cpu, machine.blas,
                  machine.date.substr(0, machine.date.find('T')));
  const std::array<std::pair<Quantity, std::string>, 2> kinds{
      {{Quantity::runtime, "runtime"}, {Quantity::memory, "memory"}}};
  const TemporaryFolder temporary;
  std::vector<std::string> paths;
  for (const auto& [quantity, name] : kinds) {
    for (const char* extension : {".png", ".svg"}) {
      const std::string drawn = temporary.file(name + extension);
      const std::string script = plot_script(quantity, series, subtitle, drawn);
      if (!run_gnuplot(script, temporary)) return std::nullopt;
      paths.push_back(fmt::format("{}-{}{}", prefix, name, extension));
      keep_plot(drawn, paths.back());
    }
  }
  return paths;
}

}  // namespace tessera::cli::bench
