// Means and largest magnitudes of channels: a reduction over blocks of tokens, then one over
// blocks.
//
// The order of sums is the scheme's (OrderedSum): thread r of eight sums tokens i ≡ r modulo 8, and
// eight neighbouring lanes add up in a butterfly.
#include <algorithm>

#include "cuda/host/launch.hpp"
#include "cuda/quant/kernels.cuh"

namespace tessera::cuda {
namespace {

constexpr int kMost = 3;    // statistics side by side
constexpr int kAtOnce = 8;  // tokens that a thread reads

struct StatisticsList {
  Statistics all[kMost];
  unsigned blocks = 1;  ///< Thread blocks for each.
};

__device__ __forceinline__ bool is_largest(const Statistics& s) {
  return s.kind == Statistics::Kind::largest;
}

/// Tokens of a block of the scheme's sums.
__device__ __forceinline__ int block_tokens(const Source& source) {
  return source.queries ? static_cast<int>(::tessera::quant::kQueryBlock)
                        : static_cast<int>(::tessera::quant::kKeyBlock);
}

__device__ __forceinline__ float larger(float x, float y) {
  return __uint_as_float(max(__float_as_uint(x), __float_as_uint(y)));
}

/// Blocks of tokens, kTileTokens for each thread block. Lane r + 8 c of warp w has tokens r modulo
/// 8 and channels [8 (4 w + c), …).
template <typename T, int kChunks>
__global__ void __launch_bounds__(8 * kChunks, kResidentThreads<T> / (8 * kChunks))
    reduce_tokens(const __grid_constant__ Parameters p,
                  const __grid_constant__ StatisticsList list) {
  const Statistics& s = list.all[blockIdx.x / list.blocks];
  const Source& source = s.source;
  TileRows rows;
  if (!locate_rows(p, source, static_cast<int>(blockIdx.x % list.blocks), rows)) return;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int r = lane % 8;
  const int column = 8 * (static_cast<int>(threadIdx.x / kWarpSize) * 4 + lane / 8);
  if (column - lane / 8 * 8 >= source.columns) return;  // whole warps
  float mean[8];
  load_means(mean, means_of(s.means, source, rows), column, source.columns);
  const int tokens = block_tokens(source);
  for (int block = 0; block < kTileTokens / tokens; ++block) {
    float result[8] = {};
    for (int i = r; i < tokens; i += 8 * kAtOnce) {
      const int first = rows.begin + block * tokens + i;
      Tokens<T, kAtOnce> own;
      own.load(p, source, rows, column, [first](int k) { return first + 8 * k; });
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float x = own.x[k].at(e);
          if (is_largest(s)) {
            const std::uint32_t magnitude = magnitude_bits(__fsub_rn(x, mean[e]));
            if (own.has(k)) result[e] = larger(result[e], __uint_as_float(magnitude));
          } else {
            result[e] = __fadd_rn(result[e], x);
          }
        }
      }
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float other = __shfl_xor_sync(~0u, result[e], step);
        result[e] = is_largest(s) ? larger(result[e], other) : __fadd_rn(result[e], other);
      }
    }
    const std::int64_t at = rows.plane * (source.padded_rows / tokens) + rows.row / tokens + block;
    float own = result[0];
#pragma unroll
    for (int e = 1; e < 8; ++e) own = r == e ? result[e] : own;
    if (column + r < source.columns) s.blocks[at * source.columns + column + r] = own;
  }
}

constexpr int kParts = 8;

/// Sequences: warp r of eight takes blocks r modulo 8 of 32 channels.
__global__ void __launch_bounds__(kParts* kWarpSize)
    reduce_blocks(const __grid_constant__ Parameters p,
                  const __grid_constant__ StatisticsList list) {
  __shared__ float parts[kParts][kWarpSize];
  const Statistics& s = list.all[blockIdx.x / list.blocks];
  const Source& source = s.source;
  const int parts_of_row = (source.columns + kWarpSize - 1) / kWarpSize;
  const int x = static_cast<int>(blockIdx.x % list.blocks);
  const int b = x / parts_of_row / source.heads;
  if (b >= p.batch) return;
  const TileRows rows = rows_of_sequence(p, source, b, x / parts_of_row % source.heads);
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int r = static_cast<int>(threadIdx.x / kWarpSize);
  const int column = x % parts_of_row * kWarpSize + lane;
  const int tokens = block_tokens(source);
  const int blocks = (rows.length + tokens - 1) / tokens;
  const float* from =
      s.blocks + (rows.plane * (source.padded_rows / tokens) + rows.row / tokens) * source.columns +
      column;
  if (s.kind == Statistics::Kind::block_means) {
    for (int block = r; block < blocks && column < source.columns; block += kParts) {
      const int count = count_used(p, source, rows, block * tokens, tokens);
      const std::int64_t at = static_cast<std::int64_t>(block) * source.columns;
      s.out[from - s.blocks + at] =
          count == 0 ? 0.0f : __fdiv_rn(from[at], static_cast<float>(count));
    }
    return;
  }
  float own = 0;
  if (column < source.columns) {
#pragma unroll 4
    for (int block = r; block < blocks; block += kParts) {
      const float x = from[static_cast<std::int64_t>(block) * source.columns];
      own = is_largest(s) ? larger(own, x) : __fadd_rn(own, x);
    }
  }
  parts[r][lane] = own;
  __syncthreads();
  if (r != 0 || column >= source.columns) return;
  const auto part = [&](int x) { return parts[x][lane]; };
  float result;
  if (is_largest(s)) {
    result = own;
    for (int x = 1; x < kParts; ++x) result = larger(result, part(x));
  } else {
    const float low = __fadd_rn(__fadd_rn(part(0), part(4)), __fadd_rn(part(2), part(6)));
    const float high = __fadd_rn(__fadd_rn(part(1), part(5)), __fadd_rn(part(3), part(7)));
    const int count = count_used(p, source, rows, 0, rows.length);
    result = count == 0 ? 0.0f : __fdiv_rn(__fadd_rn(low, high), static_cast<float>(count));
  }
  s.out[rows.sequence_plane * source.columns + column] = result;
}

}  // namespace

Status compute_statistics(const Parameters& p, std::span<const Statistics> all,
                          cudaStream_t stream) {
  if (all.empty()) return {};
  StatisticsList list;
  std::int64_t tiles = 0, parts = 0;
  int columns = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Source& source = all[i].source;
    list.all[i] = all[i];
    tiles = std::max(tiles, tile_count(p, source));
    parts = std::max(parts, std::int64_t{p.batch} * source.heads *
                                ((source.columns + kWarpSize - 1) / kWarpSize));
    columns = std::max(columns, source.columns);
  }
  const auto count = static_cast<std::int64_t>(all.size());
  list.blocks = static_cast<unsigned>(tiles);
  const Status status = for_dtype(all[0].source.dtype, [&]<typename T>(T) {
    return for_chunks(columns, [&](auto chunks) {
      return launch("quantise: statistics", reduce_tokens<T, chunks()>, tiles * count, 8 * chunks(),
                    0, stream, p, list);
    });
  });
  if (!status.ok()) return status;
  list.blocks = static_cast<unsigned>(parts);
  return launch("quantise: statistics", reduce_blocks, parts * count, kParts * kWarpSize, 0, stream,
                p, list);
}

}  // namespace tessera::cuda
