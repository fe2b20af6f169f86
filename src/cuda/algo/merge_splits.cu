#include "cuda/algo/merge.cuh"
#include "cuda/algo/merge_splits.hpp"
#include "cuda/algo/sequence.cuh"
#include "cuda/host/launch.hpp"

namespace tessera::cuda {
namespace {

constexpr int kMergeThreads = 128;
constexpr int kMergeBlocks = 8;  ///< On one multiprocessor: bounds the registers.
constexpr int kLaneColumns = 4;  ///< Of o, for a lane at a time.

/// One warp for each query row. Splits are added in their order: deterministic.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads, kMergeBlocks)
    merge_rows(const __grid_constant__ Parameters p, const __grid_constant__ Partials partials,
               int splits) {
  const std::int64_t row =
      static_cast<std::int64_t>(blockIdx.x) * (kMergeThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (row >= partials.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int token = static_cast<int>(row % p.seq_q);
  const int h = static_cast<int>(row / p.seq_q % p.heads_q);
  const int b = static_cast<int>(row / p.seq_q / p.heads_q);
  const auto lse_of = [&](int split) { return partials.lse[split * partials.rows + row]; };
  const Merged merged = merge(splits, minus_infinity(), lse_of);
  if (p.lse.data != nullptr && lane == 0) *scalar_of(p.lse, b, h, token) = merged.lse();
  T* o = row_of<T>(p.o, b, h, token);
  for (int first = lane; first < p.head_dim_v; first += kLaneColumns * kWarpSize) {
    float sum[kLaneColumns] = {};
#pragma unroll 4
    for (int split = 0; split < splits; ++split) {
      const float weight = merged.weight(lse_of(split));
      const float* part = partials.o + (split * partials.rows + row) * p.head_dim_v;
#pragma unroll
      for (int x = 0; x < kLaneColumns; ++x) {
        const int d = first + x * kWarpSize;
        const float value = d < p.head_dim_v ? part[d] : 0.0f;
        if (weight != 0) sum[x] = fmaf(weight, value, sum[x]);
      }
    }
#pragma unroll
    for (int x = 0; x < kLaneColumns; ++x) {
      const int d = first + x * kWarpSize;
      if (d < p.head_dim_v) o[d] = from_float<T>(sum[x] * p.keep_scale);
    }
  }
}

}  // namespace

Status merge_splits(DType dtype, const Parameters& p, const Partials& partials, int splits,
                    cudaStream_t stream) {
  constexpr int kRowsPerBlock = kMergeThreads / kWarpSize;
  return launch("merge_splits",
                dtype == DType::f16 ? merge_rows<__half> : merge_rows<__nv_bfloat16>,
                (partials.rows + kRowsPerBlock - 1) / kRowsPerBlock, kMergeThreads, 0, stream, p,
                partials, splits);
}

}  // namespace tessera::cuda
