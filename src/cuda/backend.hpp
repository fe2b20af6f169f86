// NVIDIA GPUs. The build links backend.cpp where a CUDA toolkit was found, else absent.cpp; both
// give the same function, so nothing outside this folder knows which.
#pragma once

#include "core/registry.hpp"

namespace tessera::cuda {

const Backend& backend();

}  // namespace tessera::cuda
