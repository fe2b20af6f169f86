// The small passes around a backward kernel, shared by all of them.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/algo/parameters.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// g.delta = Σ_d d_o · o − d_lse for every query row. `dtype` is q's.
Status compute_delta(DType dtype, const Parameters& p, const Gradients& g, cudaStream_t stream);

/// d_sink[h] = −Σ exp(sink[h] − lse) · delta over the used rows of all sequences; deterministic.
Status sink_gradient(const Parameters& p, const Gradients& g, cudaStream_t stream);

}  // namespace tessera::cuda
