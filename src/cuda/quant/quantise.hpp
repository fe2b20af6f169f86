// Makes the operands of quantised kernels from Q, K and V: the scheme of quant/scheme.hpp, bit for
// bit.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/algo/parameters.hpp"
#include "cuda/quant/workspace.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// Fills the operands. `p` has the tensors of `problem`. Without `row_offsets` these are not
/// computed.
Status quantise(const Problem& problem, const Parameters& p, const QuantisedWorkspace& to,
                bool row_offsets, cudaStream_t stream);

}  // namespace tessera::cuda
