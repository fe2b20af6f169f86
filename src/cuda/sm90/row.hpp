// Kernels for Hopper: wgmma, the copy engine, specialised warps.
#pragma once

#include "core/registry.hpp"

namespace tessera::cuda::sm90 {

extern const Row kSm90Row;
extern const Row kSplitKvRow;
extern const Row kSageRow;

}  // namespace tessera::cuda::sm90
