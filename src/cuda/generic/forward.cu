// The generic forward pass: any dtype, head dim and feature, in f32 throughout.
//
// One block computes C.rows query rows of one head. It walks through the keys in tiles of 64:
//   S [rows × 64] = q kᵀ, by chunks of 32 head dims       (registers, 16 × 16 threads)
//   softmax online: m, l per row in the registers of the row's 16 threads
//   P [rows × 64] to shared memory
//   O [rows × Dv] += P v, by chunks of 64 head dims        (registers)
// Everything is recomputed from global memory through L2; shared memory holds only chunks, so head
// dims are bounded by the accumulators alone. No result depends on another block: deterministic.
#include "cuda/algo/config.hpp"
#include "cuda/generic/generic.hpp"
#include "cuda/generic/tile.cuh"
#include "cuda/host/kernel.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/host/parameters.hpp"

namespace tessera::cuda::generic {
namespace {

struct Config {
  DType dtype;
  int head_dim_v;  ///< At most.
  int rows;        ///< Queries of a block.
};

template <typename T, typename ConfigOf>
__global__ void __launch_bounds__(kThreads)
    generic_forward(const __grid_constant__ Parameters p, int tiles) {
  constexpr Config C = ConfigOf::value;
  constexpr int kR = C.rows / kSide;
  constexpr int kC = kInner / kSide;
  constexpr int kE = C.head_dim_v / kSide;
  __shared__ Scratch<C.rows> shared;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;

  TileIndex tile;
  tile.h = blockIdx.x / tiles;
  if (!locate_tile<Side::queries>(p, blockIdx.x % tiles, C.rows, tile)) return;
  const int b = tile.b, h = tile.h, i0 = tile.begin;
  const Sequence sequence = sequence_of(p, b);
  const HeadScores<T> scores(p, sequence, b, h);
  const auto q = source<T>(p.q, b, h, sequence.q_begin, sequence.q_len, p.head_dim);
  const auto k = source<T>(p.k, b, h / p.group, sequence.kv_begin, sequence.kv_len, p.head_dim);
  const auto v = source<T>(p.v, b, h / p.group, sequence.kv_begin, sequence.kv_len, p.head_dim_v);

  float m[kR], l[kR], o[kR][kE] = {};
  const float sink = p.sink == nullptr ? minus_infinity() : p.sink[h];
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    m[r] = sink;
    l[r] = sink == minus_infinity() ? 0.0f : 1.0f;
  }

  const Range queries{i0, min(i0 + C.rows, sequence.q_len)};
  Range keys{0, 0};
  if (!queries.empty()) keys = visible_keys(p, sequence, queries.begin, queries.end);
  BlockWalk<Side::queries, kInner> walk(p, b, h, queries, keys);
  for (Visit visit; walk.next(visit);) {
    const int j0 = visit.begin;
    float s[kR][kC] = {};
    score_product(s, q, i0, k, j0, visit.listed, shared);
    FirstRows first_v;
    first_v.fetch(v, j0, 0, visit.listed);

    if (scores.plain() && visit.full &&
        all_visible(p, sequence, {i0, i0 + C.rows}, {j0, j0 + kInner})) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int c = 0; c < kC; ++c) s[r][c] = __fmul_rn(p.scale, s[r][c]);
      }
    } else {
      through_memory<kR, kC>(shared.w, s, [&](float& element, int row, int column) {
        const int i = i0 + row, j = j0 + column;
        const bool attends =
            scores.attends(i, j) && (visit.full || block_mask_allows(p, b, h, i, j));
        element = attends ? scores.score(element, i, j).s : minus_infinity();
      });
    }
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      float largest = minus_infinity();
#pragma unroll
      for (int c = 0; c < kC; ++c) largest = fmaxf(largest, s[r][c]);
      const float m_new = fmaxf(m[r], row_max(largest));
      const float base = m_new == minus_infinity() ? 0.0f : m_new;  // keeps −∞ − −∞ away
      const float rescale = exp2f((m[r] - base) * kLog2e);
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        s[r][c] = exp2f((s[r][c] - base) * kLog2e);
        sum += s[r][c];
        shared.w[(ty + kSide * r) * kRowPitch + tx + kSide * c] = s[r][c];
      }
      l[r] = l[r] * rescale + row_sum(sum);
      m[r] = m_new;
#pragma unroll
      for (int e = 0; e < kE; ++e) o[r][e] *= rescale;
    }
    if (p.dropout_threshold != 0) {
      through_memory<kR, kC>(shared.w, s, [&](float& element, int row, int column) {
        element = element == 0 ? 0.0f : element * scores.keep(i0 + row, j0 + column);
      });
    }
    row_product(o, v, j0, visit.listed, first_v, shared);
  }

#pragma unroll
  for (int r = 0; r < kR; ++r) {
    const int i = i0 + ty + kSide * r;
    if (i >= sequence.q_rows) break;
    const bool used = i < sequence.q_len && l[r] > 0;
    store_row(row_of<T>(p.o, b, h, sequence.q_begin + i), p.head_dim_v, o, r,
              used ? 1.0f / l[r] : 0.0f);
    if (p.lse.data != nullptr && tx == 0) {
      *scalar_of(p.lse, b, h, sequence.q_begin + i) = used ? m[r] + logf(l[r]) : minus_infinity();
    }
  }
}

template <typename T, Config C>
Status launch_forward(const Parameters& p, cudaStream_t stream) {
  const std::int64_t tiles = tiles_per_head(p, p.seq_q, C.rows);
  return launch("generic_forward", generic_forward<T, Constant<C>>, tiles * p.heads_q, kThreads, 0,
                stream, p, static_cast<int>(tiles));
}

template <typename T, DType kDType>
Status launch_by_head_dim(const Parameters& p, cudaStream_t stream) {
  if (p.head_dim_v <= 64) return launch_forward<T, Config{kDType, 64, 64}>(p, stream);
  if (p.head_dim_v <= 128) return launch_forward<T, Config{kDType, 128, 64}>(p, stream);
  if (p.head_dim_v <= 256) return launch_forward<T, Config{kDType, 256, 64}>(p, stream);
  return launch_forward<T, Config{kDType, 512, 32}>(p, stream);
}

class Forward final : public CudaKernel {
 public:
  using CudaKernel::CudaKernel;

  std::string config() const override {
    return problem_.head_dim_v <= 256 ? "f32 FMA, tile 64x64" : "f32 FMA, tile 32x64";
  }
  std::size_t workspace_bytes() const override { return 0; }

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override {
    const Parameters p = make_parameters(problem_, arguments);
    switch (problem_.dtype) {
      case DType::f16:
        return launch_by_head_dim<__half, DType::f16>(p, stream);
      case DType::bf16:
        return launch_by_head_dim<__nv_bfloat16, DType::bf16>(p, stream);
      default:
        return launch_by_head_dim<float, DType::f32>(p, stream);
    }
  }
};

}  // namespace

std::unique_ptr<Kernel> make_forward(const Problem& problem) {
  return std::make_unique<Forward>(problem);
}

}  // namespace tessera::cuda::generic
