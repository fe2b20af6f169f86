// V to E4M3 with a scale for each channel, transposed, its keys permuted.
//
// A block has kTileTokens keys. A thread reads eight channels of the four keys that become a word
// of the transposed row; words meet in shared memory, [channel][key], where 16-byte vectors are
// permuted by the channel's number, and leave it as whole rows.
#include "cuda/host/launch.hpp"
#include "cuda/ptx/e4m3.cuh"
#include "cuda/quant/kernels.cuh"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWords = kTileTokens / 4;  // of a channel

/// Where word `word` of a channel lies.
__device__ __forceinline__ int place(int channel, int word) {
  return channel * kWords + (word ^ (channel / 8 % 8 * 4));
}

/// The e-th key of word `word`.
__device__ __forceinline__ int key_of(int word, int e) {
  return word / 4 * 16 + word % 4 * 2 + e % 2 + e / 2 * 8;
}

template <typename T, int kChunks>
__global__ void __launch_bounds__(kThreads, kResidentThreads<T> / kThreads)
    values_to_e4m3(const __grid_constant__ Parameters p,
                   const __grid_constant__ ValuesTarget target) {
  constexpr int kChannels = 8 * kChunks;
  __shared__ __align__(16) std::uint32_t words[kChannels * kWords];
  __shared__ float inverses[kChannels], means[kChannels];
  const Source& source = target.source;
  TileRows rows;
  if (!locate_rows(p, source, static_cast<int>(blockIdx.x), rows)) return;
  const std::int64_t first = rows.sequence_plane * source.columns;
  for (int d = static_cast<int>(threadIdx.x); d < kChannels; d += kThreads) {
    Scale scale{0, 0};
    if (d < source.columns) {
      scale = scale_of(__float_as_uint(target.largest[first + d]), ::tessera::quant::kE4M3Largest);
      if (rows.begin == 0) target.scales[first + d] = scale.scale;
    }
    inverses[d] = scale.inverse;
    means[d] = target.means != nullptr && d < source.columns ? target.means[first + d] : 0.0f;
  }
  __syncthreads();

  for (int x = static_cast<int>(threadIdx.x); x < kChunks * kWords; x += kThreads) {
    const int column = x % kChunks * 8;
    const int word = x / kChunks;
    Tokens<T, 4> own;
    own.load(p, source, rows, column, [&](int e) { return rows.begin + key_of(word, e); });
#pragma unroll
    for (int d = 0; d < 8; ++d) {
      const float inverse = inverses[column + d], mean = means[column + d];
      float y[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool zero = !own.has(e) || inverse == 0;
        y[e] = zero ? 0.0f : __fmul_rn(__fsub_rn(own.x[e].at(d), mean), inverse);
      }
      words[place(column + d, word)] = ptx::pack_e4m3(y[0], y[1], y[2], y[3]);
    }
  }
  __syncthreads();

  std::uint8_t* to = target.values + rows.plane * source.columns * source.padded_rows + rows.row;
  constexpr int kVectors = kWords / 4;
#pragma unroll 4
  for (int x = static_cast<int>(threadIdx.x); x < kChannels * kVectors; x += kThreads) {
    const int channel = x / kVectors;
    if (channel >= source.columns) break;
    const uint4 vector = *reinterpret_cast<uint4*>(&words[place(channel, x % kVectors * 4)]);
    *reinterpret_cast<uint4*>(to + static_cast<std::int64_t>(channel) * source.padded_rows +
                              x % kVectors * 16) = vector;
  }
}

}  // namespace

Status quantise_values(const Parameters& p, const ValuesTarget& target, cudaStream_t stream) {
  return for_dtype(target.source.dtype, [&]<typename T>(T) {
    return for_chunks(target.source.columns, [&](auto chunks) {
      return launch("quantise: values", values_to_e4m3<T, chunks()>, tile_count(p, target.source),
                    kThreads, 0, stream, p, target);
    });
  });
}

}  // namespace tessera::cuda
