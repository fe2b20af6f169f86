// What a kernel of sm90/ is given besides the problem: tensors as the copy engine sees them, and
// the order of its works.
#pragma once

#include <cuda.h>

#include "cuda/algo/merge_splits.hpp"
#include "cuda/sm90/last_round.hpp"

namespace tessera::cuda::sm90 {

/// Q, K and V as the copy engine sees them.
struct TensorMaps {
  CUtensorMap q, k, v;
};

/// In which order the tiles of queries are gone through. Key heads of all sequences in a row
/// (planes) come in sections whose K and V fit the L2 cache; within a section the last tiles of all
/// its heads come first: under a causal mask these have the most work.
struct Schedule {
  int tiles;          ///< Of a sequence; packed: of a head.
  int works;          ///< Tiles of all heads.
  int section;        ///< Planes of a section.
  int* counter;       ///< Counts works that were taken; null: blocks do not count.
  bool back = false;  ///< Then they go through the works there and back.
  /// Rows that a sequence's first tile has less than the others, which end with the sequence then.
  int missing = 0;
  Sharing last = {};  ///< A kernel that shares keys: `works` are whole ones and shares.
};

/// How short queries are divided (packed.cuh): 64 rows of a warpgroup are `rows` queries of each of
/// 64 / rows heads, and the keys of a group of heads are shared out.
struct Packing {
  int rows;    ///< 16, 32 or 64.
  int chunks;  ///< Works that a group of heads takes.
  int splits;  ///< Parts of the keys.
  Partials partials;
};

}  // namespace tessera::cuda::sm90
