// Makes the operands of quantised kernels from Q, K and V: the scheme of quant/scheme.hpp, bit for
// bit.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "core/problem.hpp"
#include "cuda/algo/parameters.hpp"
#include "cuda/quant/operands.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

struct QuantisedWorkspace {
  QuantisedOperands operands;
  QuantiseScratch scratch;
  std::size_t bytes = 0;  ///< A multiple of 64.
};

/// Where everything lies from `base`, aligned to 64 bytes, on; null to ask for the size.
QuantisedWorkspace quantised_workspace(const Problem& problem, std::byte* base);

/// Fills the operands. `p` has the tensors of `problem`. Without `row_offsets` these are not
/// computed.
Status quantise(const Problem& problem, const Parameters& p, const QuantisedWorkspace& to,
                bool row_offsets, cudaStream_t stream);

}  // namespace tessera::cuda
