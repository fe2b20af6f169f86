// The backward kernels of row cuda_sm90 that are compiled.
#pragma once

#include <span>

#include "cuda/sm80/backward_variants.hpp"

namespace tessera::cuda::sm90 {

using sm80::BackwardConfig;
using sm80::BackwardVariant;

/// Those of one head dim (one source file each).
std::span<const BackwardVariant> backward_d64();
std::span<const BackwardVariant> backward_d128();

}  // namespace tessera::cuda::sm90
