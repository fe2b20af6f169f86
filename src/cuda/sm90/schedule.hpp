// What a kernel of sm90/ is given besides the problem: tensors as the copy engine sees them, and
// the order of its works.
#pragma once

#include <cuda.h>
namespace tessera::cuda::sm90 {

/// Q, K and V as the copy engine sees them.
struct TensorMaps {
  CUtensorMap q, k, v;
};

/// In which order the tiles of queries are gone through. Key heads of all sequences in a row
/// (planes) come in sections whose K and V fit the L2 cache; within a section the last tiles of all
/// its heads come first: under a causal mask these have the most work.
struct Schedule {
  int tiles;     ///< Of a sequence; packed: of a head.
  int works;     ///< Tiles of all heads.
  int section;   ///< Planes of a section.
  int* counter;  ///< Counts works that were taken; null: blocks do not count.
};

}  // namespace tessera::cuda::sm90
