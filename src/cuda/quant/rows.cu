// Rows of Q or K to integers with their scales.
//
// A block has kTileTokens tokens in two sets of 64. In a set, lane r + 8 c of warp w has tokens r
// modulo 8 and channels [8 (4 w + c), …) in registers: read once, written once. Under the default
// granularity the tokens that share a scale are those of one lane or of two neighbours.
#include "cuda/host/launch.hpp"
#include "cuda/quant/kernels.cuh"

namespace tessera::cuda {
namespace {

constexpr int kSets = 2;
constexpr int kSetTokens = kTileTokens / kSets;
constexpr int kOwnTokens = kSetTokens / 8;

/// Largest magnitudes: of every token, or (thread) of tokens r, modulo 8, of 32.
template <int kWarps>
struct Largest {
  std::uint32_t of[kWarps][kSets][kSetTokens];
};

template <typename T, int kChunks>
class RowsBlock {
  static constexpr int kWarps = kChunks / 4;  // of a set

 public:
  __device__ RowsBlock(const Parameters& p, const RowsTarget& target, const TileRows& rows,
                       Largest<kWarps>& largest)
      : p_(p), target_(target), rows_(rows), largest_(largest) {}

  __device__ __forceinline__ void run() {
    load();
    if (target_.granularity == ScaleGranularity::thread) {
      find_thread_scales();
    } else {
      find_scales();
    }
    store();
  }

 private:
  __device__ __forceinline__ void load() {
    const Source& source = target_.source;
    const int first = rows_.begin + set_ * kSetTokens + r_;
    tokens_.load(p_, source, rows_, column_, [first](int k) { return first + 8 * k; });
    load_means(mean_, means_of(target_.means, source, rows_), column_, source.columns);
  }

  __device__ __forceinline__ float element(int k, int e) const {
    return __fsub_rn(tokens_.x[k].at(e), mean_[e]);
  }

  __device__ __forceinline__ std::uint32_t own_largest(int k) const {
    std::uint32_t largest = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) largest = max(largest, magnitude_bits(element(k, e)));
    return tokens_.has(k) ? largest : 0;
  }

  /// Over the lanes of a warp with the same tokens.
  __device__ __forceinline__ static std::uint32_t over_channels(std::uint32_t x) {
    x = max(x, __shfl_xor_sync(~0u, x, 8));
    return max(x, __shfl_xor_sync(~0u, x, 16));
  }
  /// Over the warps of a set.
  __device__ __forceinline__ std::uint32_t over_warps(int set, int token) const {
    std::uint32_t largest = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = max(largest, largest_.of[w][set][token]);
    return largest;
  }

  __device__ __forceinline__ void find_thread_scales() {
    const bool queries = target_.source.queries;
    std::uint32_t own[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < kOwnTokens; ++k) {
      std::uint32_t& half = own[k / (kOwnTokens / 2)];
      half = max(half, own_largest(k));
    }
    if (!queries) {
      own[0] = own[1] = max(own[0], own[1]);
      own[0] = own[1] = max(own[0], __shfl_xor_sync(~0u, own[0], 1));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      own[half] = over_channels(own[half]);
      if (lane_ < 8) largest_.of[warp_][set_][8 * half + r_] = own[half];
    }
    __syncthreads();
    Scale scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[half] = scale_of(over_warps(set_, 8 * half + r_), target_.levels);
    }
#pragma unroll
    for (int k = 0; k < kOwnTokens; ++k) inverse_[k] = scale[k / (kOwnTokens / 2)].inverse;
    if (column_ != 0) return;
    float* to = target_.scales + scales_begin();
    if (queries) {
      to[r_] = scale[0].scale;
      to[8 + r_] = scale[1].scale;
    } else if (r_ % 2 == 0) {
      to[r_ / 2] = scale[0].scale;
    }
  }

  /// Where the set's scales lie, unless each token has one.
  __device__ __forceinline__ std::int64_t scales_begin() const {
    const std::int64_t row = first_row();
    return target_.source.queries ? row / 4 : row / 16;
  }

  __device__ void find_scales() {
#pragma unroll
    for (int k = 0; k < kOwnTokens; ++k) {
      const std::uint32_t own = over_channels(own_largest(k));
      if (lane_ < 8) largest_.of[warp_][set_][r_ + 8 * k] = own;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kOwnTokens; ++k) {
      const int token = r_ + 8 * k;
      const Scale scale = scale_of(group_largest(token), target_.levels);
      inverse_[k] = scale.inverse;
      if (column_ != 0) continue;
      if (target_.granularity == ScaleGranularity::token) {
        target_.scales[first_row() + token] = scale.scale;
      } else if (target_.source.queries) {
        target_.scales[scales_begin() + token / kQueryWarp * 8 + token % 8] = scale.scale;
      } else {
        target_.scales[scales_begin() + token % 8 / 2] = scale.scale;
      }
    }
  }

  /// Of the tokens that share a scale with `token` of the set.
  __device__ std::uint32_t group_largest(int token) const {
    std::uint32_t largest = 0;
    if (target_.granularity == ScaleGranularity::tensor) {
      const Source& source = target_.source;
      for (int d = 0; d < source.columns; ++d) {
        largest = max(largest,
                      __float_as_uint(target_.largest[rows_.sequence_plane * source.columns + d]));
      }
      return largest;
    }
    const bool queries = target_.source.queries;
    int first = set_ * kSetTokens + token, count = 1;
    if (target_.granularity == ScaleGranularity::warp) {
      count = queries ? kQueryWarp : kKeyGroup;
    } else if (target_.granularity == ScaleGranularity::block) {
      count = queries ? kTileTokens : kKeyGroup;
    }
    first = first / count * count;
    for (int i = first; i < first + count; ++i) {
      largest = max(largest, over_warps(i / kSetTokens, i % kSetTokens));
    }
    return largest;
  }

  __device__ __forceinline__ void store() const {
    const int byte = target_.packed ? column_ / 2 : column_;
    if (byte >= target_.pitch) return;
    std::int8_t* to = target_.values + first_row() * target_.pitch + byte;
#pragma unroll
    for (int k = 0; k < kOwnTokens; ++k) {
      const std::int64_t row = r_ + 8 * k;
      const float inverse = tokens_.has(k) ? inverse_[k] : 0;
      float x[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) x[e] = element(k, e);
      const uint2 bytes = {quantised(x, 0, inverse), quantised(x, 4, inverse)};
      if (target_.packed) {
        *reinterpret_cast<std::uint32_t*>(to + row * target_.pitch) =
            packed_pairs(bytes.x, bytes.y);
      } else {
        *reinterpret_cast<uint2*>(to + row * target_.pitch) = bytes;
      }
    }
  }

  /// The set's first row among all rows.
  __device__ __forceinline__ std::int64_t first_row() const {
    return rows_.plane * target_.source.padded_rows + rows_.row + set_ * kSetTokens;
  }

  const Parameters& p_;
  const RowsTarget& target_;
  const TileRows& rows_;
  Largest<kWarps>& largest_;
  const int set_ = static_cast<int>(threadIdx.x) / (8 * kChunks);
  const int warp_ = static_cast<int>(threadIdx.x) % (8 * kChunks) / kWarpSize;
  const int lane_ = static_cast<int>(threadIdx.x) % kWarpSize;
  const int r_ = lane_ % 8;
  const int column_ = 8 * (warp_ * 4 + lane_ / 8);
  Tokens<T, kOwnTokens> tokens_;
  float mean_[8];
  float inverse_[kOwnTokens];
};

template <typename T, int kChunks>
__global__ void __launch_bounds__(kSets * 8 * kChunks, kResidentThreads<T> / (kSets * 8 * kChunks))
    rows_to_integers(const __grid_constant__ Parameters p,
                     const __grid_constant__ RowsTarget target) {
  __shared__ Largest<kChunks / 4> largest;
  TileRows rows;
  if (!locate_rows(p, target.source, static_cast<int>(blockIdx.x), rows)) return;
  RowsBlock<T, kChunks>(p, target, rows, largest).run();
}

}  // namespace

Status quantise_rows(const Parameters& p, const RowsTarget& target, cudaStream_t stream) {
  return for_dtype(target.source.dtype, [&]<typename T>(T) {
    return for_chunks(target.source.columns, [&](auto chunks) {
      return launch("quantise: rows", rows_to_integers<T, chunks()>, tile_count(p, target.source),
                    kSets * 8 * chunks(), 0, stream, p, target);
    });
  });
}

}  // namespace tessera::cuda
