// Variants that are in no table, to be measured.
#pragma once

#include "cuda/sm90/forward_variants.hpp"

namespace tessera::cuda::sm90 {

/// None, unless the CMake option TESSERA_TUNE is on.
std::span<const ForwardVariant> forward_candidates();

}  // namespace tessera::cuda::sm90
