// Split-KV forward for few query rows against many keys (decoding): the keys of one head are shared
// out over blocks, whose partial results a second kernel merges by their LSE.
#pragma once

#include <memory>
#include <string>

#include "core/registry.hpp"

namespace tessera::cuda::sm80 {

extern const Row kSplitKvRow;

}  // namespace tessera::cuda::sm80
