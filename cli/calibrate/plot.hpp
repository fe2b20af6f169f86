// Errors of each (layer, step) in both precisions, drawn by gnuplot.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "calibrate/choose.hpp"

namespace tessera::cli::calibrate {

/// A gnuplot program, its data inline; writes to `output`, whose name ends in .png or .svg.
std::string plot_script(const std::string& model, const Targets& targets,
                        const std::vector<Entry>& entries, const std::string& output);

/// Writes PREFIX-accuracy.png and .svg and returns their paths; nothing, if there is no gnuplot
/// here. Throws Error if it fails.
std::optional<std::vector<std::string>> write_plots(const std::string& model,
                                                    const Targets& targets,
                                                    const std::vector<Entry>& entries,
                                                    const std::string& prefix);

}  // namespace tessera::cli::calibrate
