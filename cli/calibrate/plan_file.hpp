// The adaptive plan as a file.
#pragma once

#include <string>
#include <vector>

#include "calibrate/choose.hpp"

namespace tessera::cli::calibrate {

struct PlanHeading {
  std::string model;
  std::int64_t heads_q = 0, heads_kv = 0, head_dim = 0;
  Quantization quantization;
};

/// The plan as JSON (docs/quantised.md). What its entries were chosen by stands beside them, in
/// members that its reader passes over. Throws Error if AdaptivePlan::parse would refuse it.
std::string plan_text(const PlanHeading& heading, const Targets& targets,
                      const std::vector<Entry>& entries);

}  // namespace tessera::cli::calibrate
