// V less its mean to 16 bits, rows padded and zero where a key is not used. A thread reads eight
// channels of four keys.
#include "cuda/host/launch.hpp"
#include "cuda/ptx/mma.cuh"
#include "cuda/quant/kernels.cuh"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOwn = 4;                    // keys of a thread,
constexpr int kStep = kTileTokens / kOwn;  // so far apart

template <typename T, typename Half, int kChunks>
__global__ void __launch_bounds__(kThreads, kResidentThreads<T> / kThreads)
    values_to_half(const __grid_constant__ Parameters p,
                   const __grid_constant__ HalfValuesTarget target) {
  const Source& source = target.source;
  TileRows rows;
  if (!locate_rows(p, source, static_cast<int>(blockIdx.x), rows)) return;
  const float* means =
      target.means == nullptr ? nullptr : target.means + rows.sequence_plane * source.columns;
  auto* const to = static_cast<Half*>(target.values) +
                   (rows.plane * source.padded_rows + rows.row) * target.pitch;
  for (int x = static_cast<int>(threadIdx.x); x < kChunks * kStep; x += kThreads) {
    const int column = x % kChunks * 8;
    const int first = x / kChunks;
    if (column >= target.pitch) continue;
    float mean[8];
    load_means(mean, means, column, source.columns);
    Tokens<T, kOwn> own;
    own.load(p, source, rows, column, [&](int k) { return rows.begin + first + kStep * k; });
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      std::uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float low = __fsub_rn(own.x[k].at(2 * w), mean[2 * w]);
        const float high = __fsub_rn(own.x[k].at(2 * w + 1), mean[2 * w + 1]);
        words[w] = own.has(k) ? ptx::pack<Half>(low, high) : 0;
      }
      *reinterpret_cast<uint4*>(to + std::int64_t{first + kStep * k} * target.pitch + column) = {
          words[0], words[1], words[2], words[3]};
    }
  }
}

}  // namespace

Status round_values(const Parameters& p, const HalfValuesTarget& target, cudaStream_t stream) {
  return for_chunks(target.source.columns, [&](auto chunks) {
    const auto start = [&](auto kernel) {
      return launch("quantise: values", kernel, tile_count(p, target.source), kThreads, 0, stream,
                    p, target);
    };
    if (target.source.dtype == DType::f16) {
      return start(values_to_half<__half, __half, chunks()>);
    }
    if (target.source.dtype == DType::bf16) {
      return start(values_to_half<__nv_bfloat16, __nv_bfloat16, chunks()>);
    }
    return start(values_to_half<float, __nv_bfloat16, chunks()>);
  });
}

}  // namespace tessera::cuda
