// From a validated problem and its tensors to what kernels are given.
#pragma once

#include "core/registry.hpp"
#include "cuda/algo/parameters.hpp"

namespace tessera::cuda {

Parameters make_parameters(const Problem& problem, const Arguments& arguments);

/// `delta` lies in the workspace.
Gradients make_gradients(const Problem& problem, const Arguments& arguments, float* delta);

/// Floats that the rows' scalars of a problem need: one for each query row.
std::size_t row_scalar_count(const Problem& problem);

/// One float for each query row, contiguous, in memory of the kernel's own.
RowScalars contiguous_row_scalars(const Problem& problem, float* data);

}  // namespace tessera::cuda
