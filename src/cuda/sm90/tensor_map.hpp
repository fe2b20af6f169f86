// Descriptions of tensors for Hopper's copy engine.
#pragma once

#include <cuda.h>

#include <optional>

#include "cuda/algo/parameters.hpp"

namespace tessera::cuda::sm90 {

/// How the copy engine sees the rows of a head: 4 dimensions (element, row, head, sequence), copied
/// in boxes of `box_rows` rows of `box_heads` heads by `panel` elements (32 or 64), swizzled as
/// SharedTile is.
struct RowsShape {
  DType dtype;
  std::int64_t head_dim, rows, heads, batch;
  int box_rows, panel;
  int box_heads = 1;
};

/// Nothing if the engine cannot: rows that are not whole 16-byte vectors, or strides that are too
/// long for it.
std::optional<CUtensorMap> tensor_map(const Rows& rows, const RowsShape& shape);

}  // namespace tessera::cuda::sm90
