// Which keys of a sequence take part: what no query block visits is never read.
#pragma once

#include <cstdint>

#include "core/problem.hpp"
#include "tessera/block_mask.hpp"

namespace tessera {

/// Whether key j of sequence b is in a block that some query block of a head of the group of h_kv
/// lists; true without a block mask.
inline bool is_key_listed(const Problem& problem, const Inputs& inputs, std::int64_t b,
                          std::int64_t h_kv, std::int64_t j) {
  if (!problem.block_mask) return true;
  const BlockMaskView& mask = *inputs.block_mask;
  const std::int64_t column = j / mask.block_kv;
  if (column >= mask.kv_blocks) return false;
  for (std::int64_t g = 0; g < problem.group(); ++g) {
    const std::int64_t h = h_kv * problem.group() + g;
    const std::int64_t plane = (mask.batch == 1 ? 0 : b) * mask.heads + (mask.heads == 1 ? 0 : h);
    const std::int64_t* offset = mask.transposed_offsets + plane * mask.kv_blocks + column;
    if (offset[1] > offset[0]) return true;
  }
  return false;
}

}  // namespace tessera
