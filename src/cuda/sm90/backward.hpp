// The backward kernels of row cuda_sm90: which there are. Workspace, order of tiles and the passes
// around them are those of cuda_sm80.
#pragma once

#include "cuda/sm80/backward.hpp"

namespace tessera::cuda::sm90 {

using sm80::BackwardConfig;
using sm80::BackwardVariant;

/// Those of one head dim (one source file each).
std::span<const BackwardVariant> backward_d64();
std::span<const BackwardVariant> backward_d128();

/// Empty if there is a kernel for the backward pass of a problem, else why not.
std::string reject_backward(const Problem& problem);
std::unique_ptr<Kernel> make_backward(const Problem& problem);

}  // namespace tessera::cuda::sm90
