// What smoothing takes from products, and has to be added back: a number for each query, and one
// for each key and block of queries.
#include "cuda/host/launch.hpp"
#include "cuda/quant/kernels.cuh"

namespace tessera::cuda {
namespace {

constexpr int kSlots = 16;                      // rows that a block's threads span
constexpr int kOwnRows = kTileTokens / kSlots;  // of a thread

/// kTileTokens rows of a block, less their means: a thread has eight channels of each kSlots-th,
/// kChunks neighbouring lanes a whole row.
template <typename T, int kChunks>
class BlockRows {
 public:
  __device__ __forceinline__ BlockRows(const Parameters& p, const Source& source,
                                       const TileRows& rows, const float* means)
      : columns_(source.columns) {
    const int first = rows.begin + slot();
    own_.load(p, source, rows, column(), [first](int k) { return first + kSlots * k; });
    load_means(mean_, means, column(), columns_);
  }

  /// Products of all rows with a line of as many numbers: to[row].
  __device__ __forceinline__ void multiply(const float* line, float* to) const {
    float y[8];
    load_means(y, line, column(), columns_);
#pragma unroll
    for (int k = 0; k < kOwnRows; ++k) {
      float sum = 0;
#pragma unroll
      for (int e = 0; e < 8; ++e) sum = fmaf(own_.x[k].at(e) - mean_[e], y[e], sum);
      sum = own_.has(k) ? sum : 0;
#pragma unroll
      for (int step = kChunks / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      if (column() == 0) to[slot() + kSlots * k] = sum;
    }
  }

 private:
  __device__ static int column() { return 8 * (static_cast<int>(threadIdx.x) % kChunks); }
  __device__ static int slot() { return static_cast<int>(threadIdx.x) / kChunks; }

  Tokens<T, kOwnRows> own_;
  float mean_[8];
  const int columns_;
};

/// Each query times its head's k̄.
template <typename T, int kChunks>
__global__ void __launch_bounds__(kSlots* kChunks)
    row_offsets(const __grid_constant__ Parameters p, const __grid_constant__ Source q,
                const float* k_means, float* offsets) {
  TileRows rows;
  if (!locate_rows(p, q, static_cast<int>(blockIdx.x), rows)) return;
  const std::int64_t head = std::int64_t{rows.b} * p.heads_kv + rows.h / p.group;
  const BlockRows<T, kChunks> tile(p, q, rows, nullptr);
  tile.multiply(k_means + head * q.columns, offsets + rows.plane * q.padded_rows + rows.row);
}

/// Each key times all q̄ of its head's queries.
template <typename T, int kChunks>
__global__ void __launch_bounds__(kSlots* kChunks)
    key_offsets(const __grid_constant__ Parameters p, const __grid_constant__ Source k,
                const __grid_constant__ Means q_means, const float* k_means,
                const __grid_constant__ QuantisedOperands to) {
  TileRows rows;
  if (!locate_rows(p, k, static_cast<int>(blockIdx.x), rows)) return;
  const Sequence sequence = sequence_of(p, rows.b);
  const int q_row = p.varlen ? padded_begin(sequence.q_begin, rows.b) : 0;
  const int blocks = q_means.of_blocks ? (sequence.q_len + kTileTokens - 1) / kTileTokens : 1;
  const int first_block = q_means.of_blocks ? q_row / kTileTokens : 0;
  const std::int64_t planes = p.varlen ? 0 : std::int64_t{rows.b} * p.heads_q;
  const BlockRows<T, kChunks> tile(
      p, k, rows, k_means == nullptr ? nullptr : k_means + rows.sequence_plane * k.columns);
#pragma unroll 1
  for (int x = 0; x < p.group * blocks; ++x) {
    const int h = rows.h * p.group + x / blocks;
    const int block = first_block + x % blocks;
    const std::int64_t line = q_means.of_blocks ? (planes + h) * (to.rows_q / kTileTokens) + block
                                                : std::int64_t{rows.b} * p.heads_q + h;
    tile.multiply(
        q_means.data + line * k.columns,
        to.key_offsets + ((planes + h) * to.offset_blocks + block) * to.rows_kv + rows.row);
  }
}

}  // namespace

Status compute_row_offsets(const Parameters& p, const Source& q, const float* k_means,
                           float* offsets, cudaStream_t stream) {
  return for_dtype(q.dtype, [&]<typename T>(T) {
    return for_chunks(q.columns, [&](auto chunks) {
      return launch("quantise: offsets", row_offsets<T, chunks()>, tile_count(p, q),
                    kSlots * chunks(), 0, stream, p, q, k_means, offsets);
    });
  });
}

Status compute_key_offsets(const Parameters& p, const Source& k, const Means& q_means,
                           const float* k_means, const QuantisedOperands& to, cudaStream_t stream) {
  return for_dtype(k.dtype, [&]<typename T>(T) {
    return for_chunks(k.columns, [&](auto chunks) {
      return launch("quantise: offsets", key_offsets<T, chunks()>, tile_count(p, k),
                    kSlots * chunks(), 0, stream, p, k, q_means, k_means, to);
    });
  });
}

}  // namespace tessera::cuda
