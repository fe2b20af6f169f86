// What rows of every precision reject.
#pragma once

#include <string>

#include "core/problem.hpp"

namespace tessera::cuda {

/// What every CUDA row rejects: a device that does not exist or that this build has no code for,
/// dtypes other than f32, f16 and bf16, sequences beyond kMaxSequence. Exact rows ask
/// reject_common, which adds the other precisions.
std::string reject_anywhere(const Problem& problem);

}  // namespace tessera::cuda
