#include "cuda/algo/gradient_passes.hpp"
#include "cuda/algo/score.cuh"
#include "cuda/host/launch.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
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

/// One warp for each query row, in memory order of delta: (b, h, token).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    delta_rows(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
               std::int64_t rows) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (row >= rows) return;
  const int lane = threadIdx.x % kWarpSize;
  const int token = static_cast<int>(row % p.seq_q);
  const int h = static_cast<int>(row / p.seq_q % p.heads_q);
  const int b = static_cast<int>(row / p.seq_q / p.heads_q);
  const T* d_o = row_of<T>(g.d_o, b, h, token);
  const T* o = row_of<T>(p.o, b, h, token);
  // The order of additions is the same for every layout, so that results do not depend on strides.
  constexpr int kVector = 16 / sizeof(T);
  float sum = 0;
  for (int d = lane * kVector; d < p.head_dim_v; d += kWarpSize * kVector) {
    alignas(16) T left[kVector];
    alignas(16) T right[kVector];
    load_vector(left, d_o + d, g.d_o.vectors, p.head_dim_v - d);
    load_vector(right, o + d, p.o.vectors, p.head_dim_v - d);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum = fmaf(to_float(left[e]), to_float(right[e]), sum);
  }
  sum = warp_sum(sum);
  if (lane != 0) return;
  if (g.d_lse.data != nullptr) sum -= *scalar_of(g.d_lse, b, h, token);
  *scalar_of(g.delta, b, h, token) = sum;
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
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float total = 0;
  for (const float part : partial) total += part;
  g.d_sink[h] = total;
}

}  // namespace

Status compute_delta(DType dtype, const Parameters& p, const Gradients& g, cudaStream_t stream) {
  const std::int64_t rows =
      static_cast<std::int64_t>(p.heads_q) * p.seq_q * (p.varlen ? 1 : p.batch);
  const std::int64_t blocks = (rows + kWarps - 1) / kWarps;
  const auto kernel = dtype == DType::f16    ? delta_rows<__half>
                      : dtype == DType::bf16 ? delta_rows<__nv_bfloat16>
                                             : delta_rows<float>;
  return launch("delta_rows", kernel, blocks, kThreads, 0, stream, p, g, rows);
}

Status sink_gradient(const Parameters& p, const Gradients& g, cudaStream_t stream) {
  return launch("sink_gradient_heads", sink_gradient_heads, p.heads_q, kThreads, 0, stream, p, g);
}

}  // namespace tessera::cuda
