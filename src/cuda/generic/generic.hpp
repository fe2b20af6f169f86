// The generic CUDA kernels: the floor under every dtype, head dim and feature.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "core/registry.hpp"
#include "cuda/algo/parameters.hpp"

namespace tessera::cuda::generic {

extern const Row kGenericRow;

std::unique_ptr<Kernel> make_forward(const Problem& problem);
std::unique_ptr<Kernel> make_backward(const Problem& problem);

/// d_bias, summed over the dimensions that bias broadcasts: the pass that every CUDA row uses.
/// Needs g.delta. Deterministic; repeats two of the backward pass's products. `dtype` is q's.
Status bias_gradient(DType dtype, const Parameters& p, const Gradients& g, cudaStream_t stream);

}  // namespace tessera::cuda::generic
