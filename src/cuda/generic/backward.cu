// The generic backward pass: any dtype, head dim and feature, in f32 throughout, deterministic.
//
// Three kernels after delta = Σ d_o · o − d_lse, each block the owner of what it writes:
//   generic_d_kv    one tile of a key head's keys; walks through the queries of its group that see
//                   them.   S, dP [keys × 64];  dV += Pᵀ d_o,  dK += dSᵀ q
//   generic_d_q     one tile of a head's queries; walks through their keys.
//                   S, dP [queries × 64];  dQ += dS k
//   generic_d_bias  one tile of d_bias; goes through all that it was broadcast to.
// with  P = exp(S − lse),  dS = P ∘ (Z ∘ dP − delta)  and Z dropout's factors. S and dP are
// recomputed in each: seven products instead of five, in exchange for no atomics and no buffers.
//
// Where a pair does not attend, P and dS are set to zero, never multiplied by it: memory that must
// not matter may hold NaN.
#include "cuda/algo/config.hpp"
#include "cuda/algo/gradient_passes.hpp"
#include "cuda/generic/generic.hpp"
#include "cuda/generic/tile.cuh"
#include "cuda/host/kernel.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/host/parameters.hpp"

namespace tessera::cuda::generic {
namespace {

struct Config {
  DType dtype;
  int head_dim;  ///< Larger of D and Dv, at most.
  int rows;      ///< Keys (d_kv) or queries (d_q) of a block.
};

/// lse and delta of a query, as the element formulas want them.
struct QueryRow {
  float lse = plus_infinity();  ///< +∞ where nothing is attended to: then P = 0.
  float delta = 0;
};

__device__ __forceinline__ QueryRow query_row(const Parameters& p, const Gradients& g,
                                              const Sequence& sequence, int b, int h, int i) {
  QueryRow row;
  if (i >= sequence.q_len) return row;
  const float lse = *scalar_of(p.lse, b, h, sequence.q_begin + i);
  if (lse == minus_infinity()) return row;
  return {lse, *scalar_of(g.delta, b, h, sequence.q_begin + i)};
}

/// Z P and dS of one element; dS before the softcap's derivative if that is not `wanted`.
struct Element {
  float weight = 0;
  float d_s = 0;
};

template <typename T>
__device__ __forceinline__ Element differentiate(const HeadScores<T>& scores, bool attends,
                                                 float qk, float d_p, const QueryRow& row, int i,
                                                 int j, bool through_softcap) {
  if (!attends) return {};
  const Score score = scores.score(qk, i, j);
  const float prob = exp2f((score.s - row.lse) * kLog2e);
  if (prob == 0) return {};
  const float z = scores.keep(i, j);
  const float d_s = prob * ((z == 0 ? 0.0f : z * d_p) - row.delta);
  return {prob * z, through_softcap ? d_s * score.cap_slope : d_s};
}

/// A tile of score products: which rows and columns, and what is known of its elements.
struct ScoreTilePlace {
  Side rows;  ///< What the tile's rows are; its columns are the other.
  int row0, column0;
  bool listed;  ///< The block mask leaves every element.
  bool through_softcap;
};

/// s = q · k and d_p become Z P and dS.
template <int kOuter, int kR, int kC, typename T>
__device__ __forceinline__ void differentiate_tile(float (&s)[kR][kC], float (&d_p)[kR][kC],
                                                   const ScoreTilePlace& place,
                                                   const HeadScores<T>& scores, const Parameters& p,
                                                   const Gradients& g, const Sequence& sequence,
                                                   int b, int h, Scratch<kOuter>& shared) {
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  const bool of_queries = place.rows == Side::queries;
  const Range rows{place.row0, place.row0 + kR * kSide};
  const Range columns{place.column0, place.column0 + kC * kSide};
  if (place.listed && scores.plain() && p.dropout_threshold == 0 &&
      all_visible(p, sequence, of_queries ? rows : columns, of_queries ? columns : rows)) {
    QueryRow query;
#pragma unroll
    for (int x = 0; x < kR * kC; ++x) {
      const int r = of_queries ? x / kC : x % kR, c = of_queries ? x % kC : x / kR;
      const bool is_new = of_queries ? c == 0 : r == 0;
      if (is_new) {
        const int i = of_queries ? rows.begin + ty + kSide * r : columns.begin + tx + kSide * c;
        query = query_row(p, g, sequence, b, h, i);
      }
      s[r][c] = exp2f((__fmul_rn(p.scale, s[r][c]) - query.lse) * kLog2e);
      d_p[r][c] = s[r][c] * (d_p[r][c] - query.delta);
    }
    return;
  }
  __syncthreads();  // all have read the operands in whose place d_p goes
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      shared.x[(ty + kSide * r) * kRowPitch + tx + kSide * c] = d_p[r][c];
    }
  }
  through_memory<kR, kC>(shared.w, s, [&](float& element, int row, int column) {
    const int i = of_queries ? rows.begin + row : columns.begin + column;
    const int j = of_queries ? columns.begin + column : rows.begin + row;
    const bool attends = scores.attends(i, j) && (place.listed || block_mask_allows(p, b, h, i, j));
    float& other = shared.x[row * kRowPitch + column];
    const Element e =
        differentiate(scores, attends, element, other, query_row(p, g, sequence, b, h, i), i, j,
                      place.through_softcap);
    element = e.weight;
    other = e.d_s;
  });
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      d_p[r][c] = shared.x[(ty + kSide * r) * kRowPitch + tx + kSide * c];
    }
  }
}

/// Makes a score product's elements the weights of a row product.
template <int kR, int kC>
__device__ __forceinline__ void store_weights(float* to, const float (&acc)[kR][kC]) {
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) to[(ty + kSide * r) * kRowPitch + tx + kSide * c] = acc[r][c];
  }
}

template <typename T, typename ConfigOf>
__global__ void __launch_bounds__(kThreads)
    generic_d_kv(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                 int tiles) {
  constexpr Config C = ConfigOf::value;
  constexpr int kR = C.rows / kSide;
  constexpr int kC = kInner / kSide;
  constexpr int kE = C.head_dim / kSide;
  __shared__ Scratch<C.rows> shared;
  const int ty = threadIdx.x / kSide;

  TileIndex tile;
  const int h_kv = blockIdx.x / tiles;
  if (!locate_tile<Side::keys>(p, blockIdx.x % tiles, C.rows, tile)) return;
  const int b = tile.b, j0 = tile.begin;
  const Sequence sequence = sequence_of(p, b);
  const auto k = source<T>(p.k, b, h_kv, sequence.kv_begin, sequence.kv_len, p.head_dim);
  const auto v = source<T>(p.v, b, h_kv, sequence.kv_begin, sequence.kv_len, p.head_dim_v);
  const Range keys{j0, min(j0 + C.rows, sequence.kv_len)};
  Range queries{0, 0};
  if (!keys.empty()) queries = seeing_queries(p, sequence, keys.begin, keys.end);

  float d_k[kR][kE] = {}, d_v[kR][kE] = {};
  for (int h = h_kv * p.group; h < (h_kv + 1) * p.group; ++h) {
    const HeadScores<T> scores(p, sequence, b, h);
    const auto q = source<T>(p.q, b, h, sequence.q_begin, sequence.q_len, p.head_dim);
    const auto d_o = source<T>(g.d_o, b, h, sequence.q_begin, sequence.q_len, p.head_dim_v);
    BlockWalk<Side::keys, kInner> walk(p, b, h, keys, queries);
    for (Visit visit; walk.next(visit);) {
      const int i0 = visit.begin;
      float s[kR][kC] = {}, d_p[kR][kC] = {};
      score_product(s, k, j0, q, i0, ~0u, shared);
      score_product(d_p, v, j0, d_o, i0, ~0u, shared);
      FirstRows first;
      first.fetch(d_o, i0, 0);
      differentiate_tile(s, d_p, {Side::keys, j0, i0, visit.full != 0, true}, scores, p, g,
                         sequence, b, h, shared);
      store_weights(shared.w, s);
      row_product(d_v, d_o, i0, ~0u, first, shared);
      first.fetch(q, i0, 0);
      __syncthreads();
      store_weights(shared.w, d_p);
      row_product(d_k, q, i0, ~0u, first, shared);
    }
  }

#pragma unroll
  for (int r = 0; r < kR; ++r) {
    const int j = j0 + ty + kSide * r;
    if (j >= sequence.kv_rows) break;
    const int token = sequence.kv_begin + j;
    if (g.d_k.data != nullptr) {
      store_row(row_of<T>(g.d_k, b, h_kv, token), p.head_dim, d_k, r, p.scale);
    }
    if (g.d_v.data != nullptr) {
      store_row(row_of<T>(g.d_v, b, h_kv, token), p.head_dim_v, d_v, r, 1.0f);
    }
  }
}

template <typename T, typename ConfigOf>
__global__ void __launch_bounds__(kThreads)
    generic_d_q(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                int tiles) {
  constexpr Config C = ConfigOf::value;
  constexpr int kR = C.rows / kSide;
  constexpr int kC = kInner / kSide;
  constexpr int kE = C.head_dim / kSide;
  __shared__ Scratch<C.rows> shared;
  const int ty = threadIdx.x / kSide;

  TileIndex tile;
  tile.h = blockIdx.x / tiles;
  if (!locate_tile<Side::queries>(p, blockIdx.x % tiles, C.rows, tile)) return;
  const int b = tile.b, h = tile.h, i0 = tile.begin;
  const Sequence sequence = sequence_of(p, b);
  const HeadScores<T> scores(p, sequence, b, h);
  const int kv_begin = sequence.kv_begin, kv_len = sequence.kv_len;
  const auto q = source<T>(p.q, b, h, sequence.q_begin, sequence.q_len, p.head_dim);
  const auto d_o = source<T>(g.d_o, b, h, sequence.q_begin, sequence.q_len, p.head_dim_v);
  const auto k = source<T>(p.k, b, h / p.group, kv_begin, kv_len, p.head_dim);
  const auto v = source<T>(p.v, b, h / p.group, kv_begin, kv_len, p.head_dim_v);

  float d_q[kR][kE] = {};
  const Range queries{i0, min(i0 + C.rows, sequence.q_len)};
  Range keys{0, 0};
  if (!queries.empty()) keys = visible_keys(p, sequence, queries.begin, queries.end);
  BlockWalk<Side::queries, kInner> walk(p, b, h, queries, keys);
  for (Visit visit; walk.next(visit);) {
    const int j0 = visit.begin;
    float s[kR][kC] = {}, d_p[kR][kC] = {};
    score_product(s, q, i0, k, j0, visit.listed, shared);
    score_product(d_p, d_o, i0, v, j0, visit.listed, shared);
    FirstRows first;
    first.fetch(k, j0, 0, visit.listed);
    differentiate_tile(s, d_p, {Side::queries, i0, j0, visit.full != 0, true}, scores, p, g,
                       sequence, b, h, shared);
    store_weights(shared.w, d_p);
    row_product(d_q, k, j0, visit.listed, first, shared);
  }

#pragma unroll
  for (int r = 0; r < kR; ++r) {
    const int i = i0 + ty + kSide * r;
    if (i >= sequence.q_rows) break;
    store_row(row_of<T>(g.d_q, b, h, sequence.q_begin + i), p.head_dim, d_q, r, p.scale);
  }
}

/// The indices that one element of a broadcast dimension stands for.
__device__ __forceinline__ Range behind(int index, std::int64_t size, int full_size) {
  return size == 1 ? Range{0, full_size} : Range{index, index + 1};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    generic_d_bias(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                   int q_tiles, int kv_tiles) {
  constexpr int kR = kInner / kSide;
  __shared__ Scratch<kInner> shared;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  int x = blockIdx.x;
  const int j0 = x % kv_tiles * kInner;
  x /= kv_tiles;
  const int own_i0 = x % q_tiles * kInner;
  x /= q_tiles;
  const int heads = static_cast<int>(g.d_bias_size[1]);
  const int b_bias = x / heads, h_bias = x % heads;
  const bool one_row = g.d_bias_size[2] == 1;  // stands for every query

  float sum[kR][kR] = {};
  const Range batch = behind(b_bias, g.d_bias_size[0], p.batch);
  const Range all_heads = behind(h_bias, g.d_bias_size[1], p.heads_q);
  for (int b = batch.begin; b < batch.end; ++b) {
    const Sequence sequence = sequence_of(p, b);
    const Range keys{j0, min(j0 + kInner, sequence.kv_len)};
    if (keys.empty()) continue;
    const Range seeing = seeing_queries(p, sequence, keys.begin, keys.end);
    const int i_begin = one_row ? seeing.begin / kInner * kInner : own_i0;
    const int i_end = one_row ? seeing.end : min(own_i0 + kInner, seeing.end);
    for (int h = all_heads.begin; h < all_heads.end; ++h) {
      const HeadScores<T> scores(p, sequence, b, h);
      const int q_begin = sequence.q_begin, q_len = sequence.q_len;
      const int kv_begin = sequence.kv_begin, kv_len = sequence.kv_len;
      const auto q = source<T>(p.q, b, h, q_begin, q_len, p.head_dim);
      const auto d_o = source<T>(g.d_o, b, h, q_begin, q_len, p.head_dim_v);
      const auto k = source<T>(p.k, b, h / p.group, kv_begin, kv_len, p.head_dim);
      const auto v = source<T>(p.v, b, h / p.group, kv_begin, kv_len, p.head_dim_v);
      for (int i0 = i_begin; i0 < i_end; i0 += kInner) {
        float s[kR][kR] = {}, d_p[kR][kR] = {};
        score_product(s, q, i0, k, j0, ~0u, shared);
        score_product(d_p, d_o, i0, v, j0, ~0u, shared);
        const bool listed = p.block_mask.row_offsets == nullptr;
        differentiate_tile(s, d_p, {Side::queries, i0, j0, listed, false}, scores, p, g, sequence,
                           b, h, shared);
#pragma unroll
        for (int r = 0; r < kR; ++r) {
#pragma unroll
          for (int c = 0; c < kR; ++c) sum[r][c] += d_p[r][c];
        }
      }
    }
  }

  if (one_row) {  // sum over the tile's rows: this thread's, then the 16 threads of a column
#pragma unroll
    for (int c = 0; c < kR; ++c) {
      float own = 0;
#pragma unroll
      for (int r = 0; r < kR; ++r) own += sum[r][c];
      shared.w[ty * kRowPitch + tx + kSide * c] = own;
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kR; ++c) {
      sum[0][c] = 0;
      for (int y = 0; y < kSide; ++y) sum[0][c] += shared.w[y * kRowPitch + tx + kSide * c];
    }
  }
  const std::int64_t plane = b_bias * g.d_bias.stride_b + h_bias * g.d_bias.stride_h;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    const int i = own_i0 + ty + kSide * r;
    if (i >= g.d_bias_size[2]) break;
#pragma unroll
    for (int c = 0; c < kR; ++c) {
      const int j = j0 + tx + kSide * c;
      if (j >= g.d_bias_size[3]) break;
      const std::int64_t at = plane + i * g.d_bias.stride_i + j;
      if (g.d_bias.dtype == DType::f32) {
        static_cast<float*>(g.d_bias.data)[at] = sum[r][c];
      } else {
        static_cast<T*>(g.d_bias.data)[at] = from_float<T>(sum[r][c]);
      }
    }
  }
}

template <typename T, Config kKeys, Config kQueries>
Status launch_backward(const Parameters& p, const Gradients& g, cudaStream_t stream) {
  if (g.d_k.data != nullptr || g.d_v.data != nullptr) {
    const std::int64_t tiles = tiles_per_head(p, p.seq_kv, kKeys.rows);
    if (Status status = launch("generic_d_kv", generic_d_kv<T, Constant<kKeys>>, tiles * p.heads_kv,
                               kThreads, 0, stream, p, g, static_cast<int>(tiles));
        !status.ok()) {
      return status;
    }
  }
  if (g.d_q.data == nullptr) return {};
  const std::int64_t tiles = tiles_per_head(p, p.seq_q, kQueries.rows);
  return launch("generic_d_q", generic_d_q<T, Constant<kQueries>>, tiles * p.heads_q, kThreads, 0,
                stream, p, g, static_cast<int>(tiles));
}

template <typename T, DType kDType>
Status launch_by_head_dim(const Parameters& p, const Gradients& g, cudaStream_t stream) {
  const int head_dim = std::max(p.head_dim, p.head_dim_v);
  constexpr Config k64{kDType, 64, 64}, k128{kDType, 128, 64}, k256{kDType, 256, 64};
  constexpr Config kKeys512{kDType, 512, 32}, kQueries512{kDType, 512, 64};
  if (head_dim <= 64) return launch_backward<T, k64, k64>(p, g, stream);
  if (head_dim <= 128) return launch_backward<T, k128, k128>(p, g, stream);
  if (head_dim <= 256) return launch_backward<T, k256, k256>(p, g, stream);
  return launch_backward<T, kKeys512, kQueries512>(p, g, stream);
}

class Backward final : public CudaKernel {
 public:
  using CudaKernel::CudaKernel;

  std::string config() const override {
    return std::max(problem_.head_dim, problem_.head_dim_v) <= 256
               ? "f32 FMA, tile 64x64, seven products"
               : "f32 FMA, tile 32x64 and 64x64, seven products";
  }
  std::size_t workspace_bytes() const override {
    return row_scalar_count(problem_) * sizeof(float);
  }

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override {
    const Parameters p = make_parameters(problem_, arguments);
    const Gradients g =
        make_gradients(problem_, arguments, reinterpret_cast<float*>(arguments.workspace));
    if (Status status = compute_delta(problem_.dtype, p, g, stream); !status.ok()) return status;
    if (Status status = run_products(p, g, stream); !status.ok()) return status;
    if (g.d_bias.data != nullptr) {
      if (Status status = bias_gradient(problem_.dtype, p, g, stream); !status.ok()) return status;
    }
    return g.d_sink != nullptr ? sink_gradient(p, g, stream) : Status();
  }

 private:
  Status run_products(const Parameters& p, const Gradients& g, cudaStream_t stream) const {
    switch (problem_.dtype) {
      case DType::f16:
        return launch_by_head_dim<__half, DType::f16>(p, g, stream);
      case DType::bf16:
        return launch_by_head_dim<__nv_bfloat16, DType::bf16>(p, g, stream);
      default:
        return launch_by_head_dim<float, DType::f32>(p, g, stream);
    }
  }
};

}  // namespace

Status bias_gradient(DType dtype, const Parameters& p, const Gradients& g, cudaStream_t stream) {
  const std::int64_t q_tiles = (g.d_bias_size[2] + kInner - 1) / kInner;
  const std::int64_t kv_tiles = (g.d_bias_size[3] + kInner - 1) / kInner;
  const auto kernel = dtype == DType::f16    ? generic_d_bias<__half>
                      : dtype == DType::bf16 ? generic_d_bias<__nv_bfloat16>
                                             : generic_d_bias<float>;
  return launch("generic_d_bias", kernel, g.d_bias_size[0] * g.d_bias_size[1] * q_tiles * kv_tiles,
                kThreads, 0, stream, p, g, static_cast<int>(q_tiles), static_cast<int>(kv_tiles));
}

std::unique_ptr<Kernel> make_backward(const Problem& problem) {
  return std::make_unique<Backward>(problem);
}

}  // namespace tessera::cuda::generic
