// What smoothing takes from products, and has to be added back: a number for each query, and one
// for each key and block of queries.
#include "cuda/host/launch.hpp"
#include "cuda/quant/kernels.cuh"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

/// A warp for each query, kTileTokens queries a block.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    row_offsets(const __grid_constant__ Parameters p, const __grid_constant__ Source q,
                const float* k_means, float* offsets) {
  TileRows rows;
  if (!locate_rows(p, q, static_cast<int>(blockIdx.x), rows)) return;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const float* means = k_means + (std::int64_t{rows.b} * p.heads_kv + rows.h / p.group) * q.columns;
  const T* from = row_of<const T>(q.rows, rows.b, rows.h, rows.first);
  for (int i = static_cast<int>(threadIdx.x / kWarpSize); i < kTileTokens; i += kWarps) {
    const int row = rows.begin + i;
    float sum = 0;
    for (int d = lane; row < rows.length && d < q.columns; d += kWarpSize) {
      sum = fmaf(to_float(from[row * q.rows.stride_s + d]), means[d], sum);
    }
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) offsets[rows.plane * q.padded_rows + rows.row + i] = sum;
  }
}

constexpr int kColumns = 32;  // channels of one step
constexpr int kLines = 8;     // sums of one thread

/// kTileTokens keys, one for each thread, times all q̄ of the key head's queries: kLines at a time,
/// kColumns channels of them in shared memory.
template <typename T>
__global__ void __launch_bounds__(kTileTokens)
    key_offsets(const __grid_constant__ Parameters p, const __grid_constant__ Source k,
                const __grid_constant__ Means q_means, const float* k_means,
                const __grid_constant__ QuantisedOperands to) {
  __shared__ float keys[kTileTokens][kColumns + 1];
  __shared__ float lines[kLines][kColumns];
  TileRows rows;
  if (!locate_rows(p, k, static_cast<int>(blockIdx.x), rows)) return;
  const int own = static_cast<int>(threadIdx.x);
  const Sequence sequence = sequence_of(p, rows.b);
  const int q_row = p.varlen ? padded_begin(sequence.q_begin, rows.b) : 0;
  const int blocks = q_means.of_blocks ? (sequence.q_len + kTileTokens - 1) / kTileTokens : 1;
  const int first_block = q_means.of_blocks ? q_row / kTileTokens : 0;
  const T* from = row_of<const T>(k.rows, rows.b, rows.h, rows.first);
  const std::int64_t planes = p.varlen ? 0 : std::int64_t{rows.b} * p.heads_q;
  for (int line = 0; line < p.group * blocks; line += kLines) {
    float sum[kLines] = {};
    for (int column = 0; column < k.columns; column += kColumns) {
      const int lane = own % kColumns;
      const int d = column + lane;
      __syncthreads();
      for (int i = own / kColumns; i < kTileTokens; i += kTileTokens / kColumns) {
        const int row = rows.begin + i;
        float x = 0;
        if (d < k.columns && row_used(p, k, rows, row)) {
          x = to_float(from[row * k.rows.stride_s + d]);
          if (k_means != nullptr) x -= k_means[rows.sequence_plane * k.columns + d];
        }
        keys[i][lane] = x;
      }
      for (int i = own / kColumns; i < kLines; i += kTileTokens / kColumns) {
        const int at = line + i;
        float x = 0;
        if (at < p.group * blocks && d < k.columns) {
          const int h = rows.h * p.group + at / blocks;
          const std::int64_t place = q_means.of_blocks ? (planes + h) * (to.rows_q / kTileTokens) +
                                                             first_block + at % blocks
                                                       : std::int64_t{rows.b} * p.heads_q + h;
          x = q_means.data[place * k.columns + d];
        }
        lines[i][lane] = x;
      }
      __syncthreads();
      for (int e = 0; e < kColumns; ++e) {
        const float key = keys[own][e];
#pragma unroll
        for (int i = 0; i < kLines; ++i) sum[i] = fmaf(lines[i][e], key, sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int at = line + i;
      if (at >= p.group * blocks) break;
      const std::int64_t h = planes + rows.h * p.group + at / blocks;
      to.key_offsets[(h * to.offset_blocks + first_block + at % blocks) * to.rows_kv + rows.row +
                     own] = sum[i];
    }
  }
}

}  // namespace

Status compute_row_offsets(const Parameters& p, const Source& q, const float* k_means,
                           float* offsets, cudaStream_t stream) {
  return for_dtype(q.dtype, [&]<typename T>(T) {
    return launch("quantise: offsets", row_offsets<T>, tile_count(p, q), kThreads, 0, stream, p, q,
                  k_means, offsets);
  });
}

Status compute_key_offsets(const Parameters& p, const Source& k, const Means& q_means,
                           const float* k_means, const QuantisedOperands& to, cudaStream_t stream) {
  return for_dtype(k.dtype, [&]<typename T>(T) {
    return launch("quantise: offsets", key_offsets<T>, tile_count(p, k), kTileTokens, 0, stream, p,
                  k, q_means, k_means, to);
  });
}

}  // namespace tessera::cuda
