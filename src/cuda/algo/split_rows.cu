#include "cuda/algo/split_rows.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/tile/split.cuh"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;  ///< Elements of a thread.

/// One thread for 8 elements: 32 bytes in, 16 for each term out.
__global__ void __launch_bounds__(kThreads)
    split_rows_kernel(const __grid_constant__ Rows from, const __grid_constant__ Rows to,
                      std::int64_t heads, std::int64_t seq, int columns, std::int64_t vectors) {
  const std::int64_t x = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (x >= vectors) return;
  const int row_vectors = term_stride(to) / kVector;
  const std::int64_t row = x / row_vectors;
  const int column = static_cast<int>(x - row * row_vectors) * kVector;
  const int token = static_cast<int>(row % seq);
  const int h = static_cast<int>(row / seq % heads);
  const int b = static_cast<int>(row / seq / heads);
  const float* in = row_of<const float>(from, b, h, token) + column;
  float elements[kVector];
  if (from.vectors && column + kVector <= columns) {
#pragma unroll
    for (int e = 0; e < kVector; e += 4) {
      const float4 four = *reinterpret_cast<const float4*>(in + e);
      elements[e] = four.x;
      elements[e + 1] = four.y;
      elements[e + 2] = four.z;
      elements[e + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int e = 0; e < kVector; ++e) elements[e] = column + e < columns ? in[e] : 0.0f;
  }
  SplitPair pairs[kVector / 2];
#pragma unroll
  for (int e = 0; e < kVector / 2; ++e) pairs[e] = split(elements[2 * e], elements[2 * e + 1]);
  __nv_bfloat16* out = row_of<__nv_bfloat16>(to, b, h, token) + column;
#pragma unroll
  for (int t = 0; t < kTerms; ++t) {
    *reinterpret_cast<uint4*>(out + t * term_stride(to)) = {pairs[0].terms[t], pairs[1].terms[t],
                                                            pairs[2].terms[t], pairs[3].terms[t]};
  }
}

}  // namespace

Rows split_rows_at(const SplitShape& shape, std::byte* to) {
  const std::int64_t stride = std::int64_t{kTerms} * split_columns(shape.columns);
  return {to, shape.batch == 1 ? 0 : shape.heads * shape.seq * stride, shape.seq * stride, stride,
          true};
}

Status split_rows(const SplitShape& shape, const Rows& from, std::byte* to, cudaStream_t stream) {
  const std::int64_t vectors =
      shape.batch * shape.heads * shape.seq * split_columns(shape.columns) / kVector;
  return launch("split_rows", split_rows_kernel, (vectors + kThreads - 1) / kThreads, kThreads, 0,
                stream, from, split_rows_at(shape, to), shape.heads, shape.seq, shape.columns,
                vectors);
}

}  // namespace tessera::cuda
