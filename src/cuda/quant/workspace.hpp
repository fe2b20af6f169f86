// What the workspace of a quantised kernel holds.
#pragma once

#include <cstddef>

#include "core/problem.hpp"
#include "cuda/quant/operands.hpp"

namespace tessera::cuda {

struct QuantisedWorkspace {
  QuantisedOperands operands;
  QuantiseScratch scratch;
  std::size_t bytes = 0;  ///< A multiple of 64.
};

/// Where everything lies from `base`, aligned to 64 bytes, on; null to ask for the size. `packed`:
/// two integers a byte, where they have 4 bits.
QuantisedWorkspace quantised_workspace(const Problem& problem, std::byte* base,
                                       bool packed = false);

}  // namespace tessera::cuda
