// Runtime and memory against sequence length, drawn by gnuplot.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/record.hpp"

namespace tessera::cli::bench {

/// The points of one curve, sequence lengths ascending.
struct Series {
  std::string title;
  std::vector<std::int64_t> seq;
  std::vector<double> ms;
  std::vector<double> extra_bytes;
};

/// One curve for each combination of what differs among the records beside the sequence length.
std::vector<Series> series_of(const std::vector<Record>& records);

/// What is common to all records: "forward, f32, non-causal, batch 1, 2 heads, D 64, 2 threads".
std::string common_label(const std::vector<Record>& records);

/// Which of a curve's values a plot shows.
enum class Quantity { runtime, memory };

/// A gnuplot program for one plot, its data inline; writes to `output`, whose name ends in .png or
/// .svg.
std::string plot_script(Quantity quantity, const std::vector<Series>& series,
                        const std::string& subtitle, const std::string& output);

/// Whether there is anything to draw: two sequence lengths at least.
bool can_plot(const std::vector<Record>& records);

/// Makes the prefix's folder. Throws Error if plots could not be written there.
void check_plot_prefix(const std::string& prefix);

/// Writes PREFIX-runtime and PREFIX-memory, each .png and .svg, and returns their paths; nothing,
/// if there is no gnuplot here. Throws Error if it fails.
std::optional<std::vector<std::string>> write_plots(const std::vector<Record>& records,
                                                    const Machine& machine,
                                                    const std::string& prefix);

}  // namespace tessera::cli::bench
