// From what a caller hands over to a Problem that kernels may trust.
#pragma once

#include <string>
#include <vector>

#include "core/problem.hpp"
#include "core/registry.hpp"

namespace tessera {

/// "[2,8,128,64]".
std::string shape_of(const TensorView& view);

/// Checks the description and the inputs' shapes, dtypes, strides and devices against one another
/// and states the problem. Reads no tensor. `threads` is stored as given.
Result<Problem> make_problem(const Attention& attention, const Inputs& inputs, Pass pass,
                             const PlanOptions& options, int threads);

/// Checks one run's arguments against the planned problem: the same shapes, no null pointers,
/// lengths and block masks in range (where the host can read them), outputs apart from everything
/// else. Writes nothing.
Status check_run(const Problem& problem, const Arguments& arguments, bool host_readable);

}  // namespace tessera
