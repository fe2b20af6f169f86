// The second kernel of passes that share out the keys of a row.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/algo/parameters.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// One result of every (split, row), normalised: o [splits][rows][head_dim_v], lse [splits][rows].
/// Rows are queries in the order (sequence, head, query). Where lse is −inf, o may be anything.
struct Partials {
  float* o;
  float* lse;
  std::int64_t rows;
};

/// Writes o, of `dtype` (f16 or bf16), and lse from the results of `splits` splits.
Status merge_splits(DType dtype, const Parameters& p, const Partials& partials, int splits,
                    cudaStream_t stream);

}  // namespace tessera::cuda
