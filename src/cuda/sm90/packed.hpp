// How a kernel of row cuda_split_kv_sm90 is chosen and run.
#pragma once

#include <memory>
#include <string>

#include "core/registry.hpp"

namespace tessera::cuda::sm90 {

/// Empty if there is a kernel for a problem, else why not.
std::string reject_packed(const Problem& problem);
std::unique_ptr<Kernel> make_packed(const Problem& problem);

}  // namespace tessera::cuda::sm90
