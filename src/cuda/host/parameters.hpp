// From a validated problem and its tensors to what kernels are given.
#pragma once

#include <algorithm>

#include "core/registry.hpp"
#include "cuda/algo/parameters.hpp"

namespace tessera::cuda {

Parameters make_parameters(const Problem& problem, const Arguments& arguments);

/// `delta` lies in the workspace.
Gradients make_gradients(const Problem& problem, const Arguments& arguments, float* delta);

/// Calls enqueue(parameters) for parts of at most `columns` columns of v and o, of `bytes` each.
/// The first part alone writes lse.
template <typename Enqueue>
Status for_value_columns(const Parameters& p, int columns, std::int64_t bytes, Enqueue enqueue) {
  for (int first = 0; first < p.head_dim_v; first += columns) {
    Parameters part = p;
    part.v.data = static_cast<std::byte*>(p.v.data) + first * bytes;
    part.o.data = static_cast<std::byte*>(p.o.data) + first * bytes;
    part.head_dim_v = std::min(columns, p.head_dim_v - first);
    if (first > 0) part.lse.data = nullptr;
    if (Status status = enqueue(part); !status.ok()) return status;
  }
  return {};
}

/// Floats that the rows' scalars of a problem need: one for each query row.
std::size_t row_scalar_count(const Problem& problem);

/// One float for each query row, contiguous, in memory of the kernel's own.
RowScalars contiguous_row_scalars(const Problem& problem, float* data);

}  // namespace tessera::cuda
