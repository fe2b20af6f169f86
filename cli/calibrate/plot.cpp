#include "calibrate/plot.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include "gnuplot.hpp"

namespace tessera::cli::calibrate {
namespace {

std::string label(const Entry& entry) {
  return entry.step == 0 ? fmt::format("{}", entry.layer)
                         : fmt::format("{}.{}", entry.layer, entry.step);
}

/// At most about 20 labels, so that they do not overlap.
std::vector<std::string> tics(const std::vector<Entry>& entries) {
  constexpr std::size_t kLabels = 20;
  const std::size_t every = (entries.size() + kLabels - 1) / kLabels;
  std::vector<std::string> list;
  for (std::size_t i = 0; i < entries.size(); i += every) {
    list.push_back(fmt::format("{} {}", plot_string(label(entries[i])), i));
  }
  return list;
}

/// Values by the number of their entry; what is not above 0 has no place on a logarithmic axis.
template <typename Value>
std::string points(const char* name, const std::vector<Entry>& entries, const Value& value) {
  std::string data = fmt::format("${} << EOD\n", name);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const double y = value(entries[i]);
    data += y > 0 ? fmt::format("{} {}\n", i, y) : fmt::format("{} NaN\n", i);
  }
  return data + "EOD\n";
}

}  // namespace

std::string plot_script(const std::string& model, const Targets& targets,
                        const std::vector<Entry>& entries, const std::string& output) {
  const std::string data =
      points("sage4", entries, [](const Entry& e) { return e.sage4.relative_l1; }) +
      points("sage8", entries, [](const Entry& e) { return e.sage8.relative_l1; }) +
      points("chosen", entries, [](const Entry& e) {
        return e.precision == Precision::exact ? 0 : e.in(e.precision).relative_l1;
      });
  std::vector<std::string> curves;
  for (std::size_t s = 0; s < 2; ++s) {
    curves.push_back(
        fmt::format("${0} using 1:2 with linespoints lw 2 ps 1.4 pt {1} lc rgb '{2}' title '{0}'",
                    s == 0 ? "sage4" : "sage8", kPlotPoints[s], kPlotColours[s]));
  }
  curves.push_back("$chosen using 1:2 with points ps 3 lw 2 pt 6 lc rgb '#444444' title 'chosen'");
  if (targets.max_l1) {
    curves.push_back(
        fmt::format("{:g} with lines lw 2 dt 2 lc rgb '#000000' title 'target'", *targets.max_l1));
  }
  return fmt::format(
      "set encoding utf8\n"
      "set terminal {}\n"
      "set output {}\n"
      "set title {}\n"
      "set logscale y 10\n"
      "set xrange [-0.5:{}]\n"
      "set xtics ({}) nomirror\n"
      "set ytics format '%g' nomirror\n"
      "set border 3 lc rgb '#444444'\n"
      "set grid ytics lc rgb '#bbbbbb' lw 1\n"
      "set xlabel 'layer, or layer.step'\n"
      "set ylabel 'relative L1 error of O'\n"
      "set key outside top center horizontal\n"
      "{}plot {}\n",
      plot_terminal(output), plot_string(output),
      plot_string(fmt::format("{}: quantised attention by layer and step", model)),
      static_cast<double>(entries.size()) - 0.5, fmt::join(tics(entries), ", "), data,
      fmt::join(curves, ", \\\n     "));
}

std::optional<std::vector<std::string>> write_plots(const std::string& model,
                                                    const Targets& targets,
                                                    const std::vector<Entry>& entries,
                                                    const std::string& prefix) {
  const TemporaryFolder temporary;
  std::vector<std::string> paths;
  for (const char* extension : {".png", ".svg"}) {
    const std::string drawn = temporary.file(std::string("accuracy") + extension);
    if (!run_gnuplot(plot_script(model, targets, entries, drawn), temporary)) return std::nullopt;
    paths.push_back(fmt::format("{}-accuracy{}", prefix, extension));
    keep_plot(drawn, paths.back());
  }
  return paths;
}

}  // namespace tessera::cli::calibrate
