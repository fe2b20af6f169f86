// Where packed sequences lie in the workspace.
#pragma once

#include "cuda/quant/operands.hpp"

namespace tessera::cuda {

/// Where row 0 of a packed sequence lies, whose first token is `begin`. Sequences keep their order,
/// and from each to the next are enough rows for its padding.
__device__ __forceinline__ int padded_begin(int begin, int b) {
  return (begin / kTileTokens + b) * kTileTokens;
}

}  // namespace tessera::cuda
