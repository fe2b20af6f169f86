// Tensor-core kernels on mma.sync for Ampere and every later chip.
#pragma once

#include "core/registry.hpp"

namespace tessera::cuda::sm80 {

extern const Row kSm80Row;
extern const Row kSm80F32Row;
extern const Row kSageRow;

}  // namespace tessera::cuda::sm80
