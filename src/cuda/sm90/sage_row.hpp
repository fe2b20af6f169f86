// Row cuda_sage_sm90: which quantised problems it takes, and its kernel.
#pragma once

#include <memory>
#include <string>

#include "core/registry.hpp"

namespace tessera::cuda::sm90 {

/// Empty if there is a kernel for the forward pass of a quantised problem, else why not.
std::string reject_sage(const Problem& problem);
std::unique_ptr<Kernel> make_sage(const Problem& problem);

}  // namespace tessera::cuda::sm90
