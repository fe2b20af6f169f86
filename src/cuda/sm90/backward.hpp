// How a backward kernel of row cuda_sm90 is chosen. Workspace, order of tiles and the passes around
// them are those of cuda_sm80.
#pragma once

#include <memory>
#include <string>

#include "core/registry.hpp"

namespace tessera::cuda::sm90 {

/// Empty if there is a kernel for the backward pass of a problem, else why not.
std::string reject_backward(const Problem& problem);
std::unique_ptr<Kernel> make_backward(const Problem& problem);

}  // namespace tessera::cuda::sm90
