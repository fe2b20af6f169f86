#include <algorithm>

#include "cuda/algo/gradient_passes.hpp"
#include "cuda/algo/score.cuh"
#include "cuda/host/launch.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

/// Sum over neighbouring lanes, `lanes` of them: a power of two.
__device__ __forceinline__ float lanes_sum(float x, int lanes) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    if (step < lanes) x += __shfl_xor_sync(~0u, x, step);
  }
  return x;
}

/// 16 bytes of a row of which `count` elements are left; zero behind them.
template <typename T, int kVector>
__device__ __forceinline__ void load_vector(T (&to)[kVector], const T* from, bool vectors,
                                            int count) {
  if (vectors) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  } else {
#pragma unroll
    for (int e = 0; e < kVector; ++e) to[e] = e < count ? from[e] : from_float<T>(0);
  }
}

/// How delta_rows shares out rows: each has as many lanes as it has vectors, at most a warp.
struct DeltaGrid {
  int lanes;            ///< A power of two.
  int blocks_per_head;  ///< Of one head of one sequence (packed: of one head).
};
constexpr int kDeltaPasses = 4;  ///< Rows of a lane, whose loads are on their way together.

template <typename T>
__global__ void __launch_bounds__(kThreads)
    delta_rows(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
               DeltaGrid grid) {
  const int head = static_cast<int>(blockIdx.x) / grid.blocks_per_head;
  const int block = static_cast<int>(blockIdx.x) - head * grid.blocks_per_head;
  const int b = head / p.heads_q;
  const int h = head - b * p.heads_q;
  const int rows = kThreads / grid.lanes;
  const int lane = static_cast<int>(threadIdx.x) % grid.lanes;
  const int first = block * (rows * kDeltaPasses) + static_cast<int>(threadIdx.x) / grid.lanes;
  // The order of additions is the same for every layout, so that results do not depend on strides.
  constexpr int kVector = 16 / sizeof(T);
  float sum[kDeltaPasses] = {};
  for (int d = lane * kVector; d < p.head_dim_v; d += grid.lanes * kVector) {
    alignas(16) T left[kDeltaPasses][kVector];
    alignas(16) T right[kDeltaPasses][kVector];
#pragma unroll
    for (int pass = 0; pass < kDeltaPasses; ++pass) {
      const int token = min(first + pass * rows, p.seq_q - 1);
      load_vector(left[pass], row_of<T>(g.d_o, b, h, token) + d, g.d_o.vectors, p.head_dim_v - d);
      load_vector(right[pass], row_of<T>(p.o, b, h, token) + d, p.o.vectors, p.head_dim_v - d);
    }
#pragma unroll
    for (int pass = 0; pass < kDeltaPasses; ++pass) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        sum[pass] = fmaf(to_float(left[pass][e]), to_float(right[pass][e]), sum[pass]);
      }
    }
  }
#pragma unroll
  for (int pass = 0; pass < kDeltaPasses; ++pass) {
    const int token = first + pass * rows;
    float delta = lanes_sum(sum[pass], grid.lanes);
    if (lane != 0 || token >= p.seq_q) continue;
    if (g.d_lse.data != nullptr) delta -= *scalar_of(g.d_lse, b, h, token);
    *scalar_of(g.delta, b, h, token) = delta;
  }
}

/// One block for each head; the order of additions depends on nothing but the lengths.
__global__ void __launch_bounds__(kThreads)
    sink_gradient_heads(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g) {
  __shared__ float partial[kWarps];
  const int h = blockIdx.x;
  const float sink = p.sink[h];
  float sum = 0;
  for (int b = 0; b < p.batch; ++b) {
    const Sequence s = sequence_of(p, b);
    for (int i = threadIdx.x; i < s.q_len; i += kThreads) {
      const float lse = *scalar_of(p.lse, b, h, s.q_begin + i);
      if (lse == minus_infinity()) continue;
      sum -= expf(sink - lse) * *scalar_of(g.delta, b, h, s.q_begin + i);
    }
  }
  sum = lanes_sum(sum, kWarpSize);
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float total = 0;
  for (const float part : partial) total += part;
  g.d_sink[h] = total;
}

}  // namespace

Status compute_delta(DType dtype, const Parameters& p, const Gradients& g, cudaStream_t stream) {
  const int vectors = (p.head_dim_v * static_cast<int>(size_of(dtype)) + 15) / 16;
  DeltaGrid grid{1, 0};
  while (grid.lanes < std::min(vectors, kWarpSize)) grid.lanes *= 2;
  const int rows = kThreads / grid.lanes * kDeltaPasses;
  grid.blocks_per_head = (p.seq_q + rows - 1) / rows;
  const std::int64_t blocks =
      static_cast<std::int64_t>(grid.blocks_per_head) * p.heads_q * (p.varlen ? 1 : p.batch);
  const auto kernel = dtype == DType::f16    ? delta_rows<__half>
                      : dtype == DType::bf16 ? delta_rows<__nv_bfloat16>
                                             : delta_rows<float>;
  return launch("delta_rows", kernel, blocks, kThreads, 0, stream, p, g, grid);
}

Status sink_gradient(const Parameters& p, const Gradients& g, cudaStream_t stream) {
  return launch("sink_gradient_heads", sink_gradient_heads, p.heads_q, kThreads, 0, stream, p, g);
}

}  // namespace tessera::cuda
