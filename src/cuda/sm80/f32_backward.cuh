// The backward pass in f32 on mma.sync, on numbers that are sums of three bf16 terms
// (tile/split.cuh), six products for one. Two kernels after delta = Σ d_o · o − d_lse, each block
// the owner of what it writes:
//
//   f32_d_kv   one tile of C.outer keys of a key head; walks through the tiles of C.inner queries
//              that see them, of every query head of the group:
//                sᵀ = K Qᵀ, d_pᵀ = V d_Oᵀ;  d_v += pᵀ d_O,  d_k += d_sᵀ Q
//   f32_d_q    one tile of C.outer queries of a head; walks through the tiles of their keys:
//                s = Q Kᵀ, d_p = d_O Vᵀ;  d_q += d_s K
//
// with p = e^(s − lse), d_s = p (d_p − delta). s and d_p are computed in both, seven products
// instead of five; in exchange a warp owns 16 rows from the scores to the gradients, so that p and
// d_s, as terms three times the size of f16's, never leave its registers, nothing is added
// atomically, and every run gives the same bits. Above head dim 128 registers hold the rows of one
// gradient, not of two: d_k and d_v come from two launches of f32_d_kv, with eight products.
//
// Outer rows lie in shared memory as f32 and are split where a warp reads them; inner rows have
// been split beforehand (algo/split_rows.hpp) and come by cp.async, the next tile while one is
// computed. One barrier a step: behind it every thread has waited for its own copies of this step,
// and all warps have left the stage that the next copies go to.
#pragma once

#include "cuda/algo/config.hpp"
#include "cuda/algo/uniform.cuh"
#include "cuda/host/launch.hpp"
#include "cuda/sm80/f32_backward_slices.cuh"
#include "cuda/sm80/forward.cuh"
#include "cuda/tile/f32_tile.cuh"

namespace tessera::cuda::sm80 {

template <F32BackwardConfig C>
struct F32BackwardTiles {
  static constexpr int kThreads = C.warps * kWarpSize;
  static constexpr int kRowTiles = C.outer / C.warps / 16;
  static constexpr int kSteps = C.head_dim / 16;
  static constexpr int kColumnTiles = C.inner / 8;
  static constexpr int kDimTiles = C.head_dim / 8;
  static constexpr int kWide = kRowTiles == 1 ? 2 : 1;  ///< As in f32_forward.cuh.
  static constexpr int kScoresWide = C.inner % (16 * kWide) == 0 ? kWide : 1;
  static_assert(C.outer == kRowTiles * 16 * C.warps && C.inner % 16 == 0);

  using Outer = F32Tile<C.outer, C.head_dim>;
  using Inner = SplitTile<C.inner, C.head_dim>;
  using Scores = float[kRowTiles][kColumnTiles][4];
  using Accumulator = float[kRowTiles][kDimTiles][4];

  static constexpr int kScalars = 2 * C.inner;  ///< lse and delta of one stage.
  static constexpr int kInnerAt = C.outer_tiles() * Outer::kBytes;
  static constexpr int kScalarsAt = kInnerAt + C.stages * 2 * Inner::kBytes;
  static constexpr int kSharedBytes = kScalarsAt + C.stages * kScalars * 4;
  static_assert(kSharedBytes == static_cast<int>(C.shared_bytes()));
  static_assert(C.stages == 2 && kThreads >= kScalars);

  /// Inner tile `which` of a stage.
  __device__ __forceinline__ static Inner inner(std::uint32_t shared, int stage, int which) {
    return {shared + kInnerAt + (2 * stage + which) * Inner::kBytes};
  }

  /// Starts to fill an inner tile from rows of one head, of which `count` exist.
  __device__ __forceinline__ static void load_inner(const Inner& tile, const Rows& rows, int b,
                                                    int h, int begin, int count, int columns,
                                                    const Visit& visit) {
    const auto* from = row_of<const __nv_bfloat16>(rows, b, h, begin);
#pragma unroll
    for (int t = 0; t < kTerms; ++t) {
      copy_vectors<kThreads>(tile.term(t), from + t * term_stride(rows), rows.stride_s, visit.begin,
                             count, columns, visit.listed);
    }
  }

  /// s [rows of the warp × inner] += outer · innerᵀ.
  template <Operand kFirst = Operand::a>
  __device__ __forceinline__ static void multiply_rows(Scores& s, const Outer& outer, int row,
                                                       const Inner& inner) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      SplitOperand a[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) a[r] = read_split_a(outer, row + 16 * r, k);
      multiply_split<kScoresWide, kFirst>(
          s, a, [&](int c) { return read_split_b_transposed(inner, 16 * c, k); });
    }
  }

  /// acc [rows of the warp × D] += scores · inner.
  __device__ __forceinline__ static void multiply_scores(Accumulator& acc, const Scores& scores,
                                                         const Inner& inner) {
#pragma unroll
    for (int k = 0; k < C.inner / 16; ++k) {
      SplitOperand a[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) a[r] = split_operand(scores[r], k);
      multiply_split<kWide>(acc, a, [&](int c) { return read_split_b(inner, 16 * k, c); });
    }
  }

  /// Stores a warp's rows of a gradient: rows [row0, …) of a head, of which `count` exist.
  __device__ __forceinline__ static void store(const Rows& rows, int b, int h, int begin, int row0,
                                               int count, int columns, const Accumulator& acc,
                                               float factor) {
    if (rows.data == nullptr) return;
    store_fragments(row_of<float>(rows, b, h, begin), rows, row0, count, 0, columns, acc, factor);
  }
};

template <typename ConfigOf>
__global__ void __launch_bounds__(F32BackwardTiles<ConfigOf::value>::kThreads, 1)
    f32_d_kv(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
             const __grid_constant__ SplitInputs terms, int tiles) {
  constexpr F32BackwardConfig C = ConfigOf::value;
  using S = F32BackwardTiles<C>;
  using Rules = ScorePart<float, S::kRowTiles, S::kColumnTiles>;
  constexpr bool kForK = C.gradients != F32Gradients::d_v;
  constexpr bool kForV = C.gradients != F32Gradients::d_k;
  extern __shared__ __align__(128) std::byte shared[];
  TileIndex tile;
  tile.h = static_cast<int>(blockIdx.x) / tiles;
  if (!locate_tile<Side::keys>(p, static_cast<int>(blockIdx.x) % tiles, C.outer, tile)) return;
  const int b = uniform(tile.b), h_kv = uniform(tile.h), j0 = uniform(tile.begin);
  const Sequence sequence = uniform(sequence_of(p, b));
  const int warp_row = uniform(static_cast<int>(threadIdx.x) / kWarpSize) * 16 * S::kRowTiles;
  const Range keys{j0, min(j0 + C.outer, sequence.kv_len)};
  const Range warp_keys{j0 + warp_row, min(j0 + warp_row + 16 * S::kRowTiles, sequence.kv_len)};
  Range queries, seeing;
  if (!keys.empty()) queries = uniform(seeing_queries(p, sequence, keys.begin, keys.end));
  if (!warp_keys.empty()) {
    seeing = uniform(seeing_queries(p, sequence, warp_keys.begin, warp_keys.end));
  }

  const std::uint32_t base = ptx::shared_address(shared);
  const typename S::Outer k{base}, v{base + S::Outer::kBytes};
  float* const scalars = reinterpret_cast<float*>(shared + S::kScalarsAt);
  const auto load_keys = [&] {
    const unsigned listed = listed_keys(p, b, h_kv, keys);
    load_f32_tile<S::kThreads>(k, row_of<const float>(p.k, b, h_kv, sequence.kv_begin),
                               p.k.stride_s, p.k.vectors, j0, sequence.kv_len, p.head_dim, listed);
    if constexpr (kForK) {
      load_f32_tile<S::kThreads>(v, row_of<const float>(p.v, b, h_kv, sequence.kv_begin),
                                 p.v.stride_s, p.v.vectors, j0, sequence.kv_len, p.head_dim_v,
                                 listed);
    }
  };
  const auto load_queries = [&](const Visit& visit, int h, int stage) {
    S::load_inner(S::inner(base, stage, 0), terms.q, b, h, sequence.q_begin, sequence.q_len,
                  p.head_dim, visit);
    S::load_inner(S::inner(base, stage, 1), terms.d_o, b, h, sequence.q_begin, sequence.q_len,
                  p.head_dim_v, visit);
    ptx::cp_async_commit();
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= C.inner) return;
    const RowGradientScalars row = row_scalars(p, g, sequence, b, h, visit.begin + thread).hidden();
    scalars[stage * S::kScalars + thread] = row.lse;
    scalars[stage * S::kScalars + C.inner + thread] = row.delta;
  };

  typename S::Accumulator d_k = {}, d_v = {};
  if (!queries.empty()) load_keys();
  GroupWalk<C.inner> walk(p, b, h_kv, keys, queries);
  Visit now, next;
  int h = 0, next_h = 0;
  bool more = true;
  for (int step = -1; more; ++step) {
    now = next;
    h = next_h;
    more = walk.next(next, next_h);
    next = uniform(next);
    next_h = uniform(next_h);
    if (step >= 0) {
      ptx::cp_async_wait<0>();
      __syncthreads();
    }
    if (more) load_queries(next, next_h, (step + 1) % C.stages);
    if (step < 0 || now.begin + C.inner <= seeing.begin || now.begin >= seeing.end) continue;
    const int stage = step % C.stages;
    const auto q = S::inner(base, stage, 0), d_o = S::inner(base, stage, 1);
    typename S::Scores s = {}, d_p = {};
    S::template multiply_rows<Operand::b>(s, k, warp_row, q);  // the same bits as Q Kᵀ has
    if constexpr (kForK) S::multiply_rows(d_p, v, warp_row, d_o);
    const float* lse = scalars + stage * S::kScalars;
    const Rules rules(p, sequence, b, h, warp_keys.begin, now.begin, {lse, lse + C.inner});
    const bool positions = !all_visible(p, sequence, {now.begin, now.begin + C.inner},
                                        {warp_keys.begin, warp_keys.begin + 16 * S::kRowTiles});
    differentiate<C.extras>(s, d_p, rules, p, positions, now.full != 0);
    if constexpr (kForV) S::multiply_scores(d_v, s, d_o);
    if constexpr (kForK) S::multiply_scores(d_k, d_p, q);
  }
  if constexpr (kForK) {
    S::store(g.d_k, b, h_kv, sequence.kv_begin, j0 + warp_row, sequence.kv_rows, p.head_dim, d_k,
             p.scale);
  }
  if constexpr (kForV) {
    S::store(g.d_v, b, h_kv, sequence.kv_begin, j0 + warp_row, sequence.kv_rows, p.head_dim_v, d_v,
             p.keep_scale);
  }
}

template <typename ConfigOf>
__global__ void __launch_bounds__(F32BackwardTiles<ConfigOf::value>::kThreads, 1)
    f32_d_q(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
            const __grid_constant__ SplitInputs terms) {
  constexpr F32BackwardConfig C = ConfigOf::value;
  using S = F32BackwardTiles<C>;
  using Rules = ScoreTile<float, S::kRowTiles, S::kColumnTiles>;
  extern __shared__ __align__(128) std::byte shared[];
  TileIndex tile;
  if (!locate_block(p, C.outer, tile)) return;
  const int b = uniform(tile.b), h = uniform(tile.h), i0 = uniform(tile.begin);
  const int h_kv = uniform(h / p.group);
  const Sequence sequence = uniform(sequence_of(p, b));
  const int warp_row = uniform(static_cast<int>(threadIdx.x) / kWarpSize) * 16 * S::kRowTiles;
  const Range queries{i0, min(i0 + C.outer, sequence.q_len)};
  const Range warp_queries{i0 + warp_row, min(i0 + warp_row + 16 * S::kRowTiles, sequence.q_len)};
  Range keys, seen, whole;
  if (!queries.empty()) keys = uniform(visible_keys(p, sequence, queries.begin, queries.end));
  if (!warp_queries.empty()) {
    seen = uniform(visible_keys(p, sequence, warp_queries.begin, warp_queries.end));
    whole = uniform(common_keys(p, sequence, warp_queries.begin, warp_queries.end));
  }

  const std::uint32_t base = ptx::shared_address(shared);
  const typename S::Outer q{base}, d_o{base + S::Outer::kBytes};
  const auto load_queries = [&] {
    load_f32_tile<S::kThreads>(q, row_of<const float>(p.q, b, h, sequence.q_begin), p.q.stride_s,
                               p.q.vectors, i0, sequence.q_len, p.head_dim);
    load_f32_tile<S::kThreads>(d_o, row_of<const float>(g.d_o, b, h, sequence.q_begin),
                               g.d_o.stride_s, g.d_o.vectors, i0, sequence.q_len, p.head_dim_v);
  };
  const auto load_keys = [&](const Visit& visit, int stage) {
    S::load_inner(S::inner(base, stage, 0), terms.k, b, h_kv, sequence.kv_begin, sequence.kv_len,
                  p.head_dim, visit);
    S::load_inner(S::inner(base, stage, 1), terms.v, b, h_kv, sequence.kv_begin, sequence.kv_len,
                  p.head_dim_v, visit);
    ptx::cp_async_commit();
  };

  RowGradientScalars rows[S::kRowTiles][2];
#pragma unroll
  for (int r = 0; r < S::kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = i0 + warp_row + 16 * r + 8 * half + lane_id() / 4;
      rows[r][half] = row_scalars(p, g, sequence, b, h, i).hidden();
    }
  }
  const Rules rules(p, sequence, b, h, i0);

  typename S::Accumulator d_q = {};
  if (!keys.empty()) load_queries();
  BlockWalk<Side::queries, C.inner> walk(p, b, h, queries, keys);
  Visit now, next;
  bool more = true;
  for (int step = -1; more; ++step) {
    now = next;
    more = walk.next(next);
    next = uniform(next);
    if (step >= 0) {
      ptx::cp_async_wait<0>();
      __syncthreads();
    }
    if (more) load_keys(next, (step + 1) % C.stages);
    if (step < 0 || now.begin + C.inner <= seen.begin || now.begin >= seen.end) continue;
    const int stage = step % C.stages;
    const auto k = S::inner(base, stage, 0), v = S::inner(base, stage, 1);
    typename S::Scores s = {}, d_p = {};
    S::multiply_rows(s, q, warp_row, k);
    S::multiply_rows(d_p, d_o, warp_row, v);
    const bool positions = now.begin < whole.begin || now.begin + C.inner > whole.end;
    differentiate<C.extras>(s, d_p, rules, p, rows, now.begin, positions, now.full != 0);
    S::multiply_scores(d_q, d_p, k);
  }
  S::store(g.d_q, b, h, sequence.q_begin, i0 + warp_row, sequence.q_rows, p.head_dim, d_q, p.scale);
}

template <F32BackwardConfig C>
Status enqueue_f32_backward(const Parameters& p, const Gradients& g, const SplitInputs& terms,
                            cudaStream_t stream) {
  constexpr int kThreads = C.warps * kWarpSize;
  if constexpr (C.gradients == F32Gradients::d_q) {
    const std::int64_t blocks = tiles_per_head(p, p.seq_q, C.outer) * p.heads_q;
    if constexpr (C.slices) {
      return launch("cuda_sm80_f32 d_q", f32_d_q_slices<Constant<C>>, blocks, kThreads,
                    C.shared_bytes(), stream, p, g);
    } else {
      return launch("cuda_sm80_f32 d_q", f32_d_q<Constant<C>>, blocks, kThreads, C.shared_bytes(),
                    stream, p, g, terms);
    }
  } else {
    const std::int64_t tiles = tiles_per_head(p, p.seq_kv, C.outer);
    const std::int64_t blocks = tiles * p.heads_kv;
    if constexpr (C.slices) {
      return launch("cuda_sm80_f32 d_kv", f32_d_kv_slices<Constant<C>>, blocks, kThreads,
                    C.shared_bytes(), stream, p, g, static_cast<int>(tiles));
    } else {
      return launch("cuda_sm80_f32 d_kv", f32_d_kv<Constant<C>>, blocks, kThreads, C.shared_bytes(),
                    stream, p, g, terms, static_cast<int>(tiles));
    }
  }
}

template <F32BackwardConfig C>
constexpr F32BackwardKernel f32_backward_kernel() {
  return {C, enqueue_f32_backward<C>};
}

/// Without and with extras.
template <F32BackwardConfig... kConfigs>
F32BackwardVariant f32_backward_variant(bool extras) {
  static constexpr F32BackwardKernel kPlain[] = {f32_backward_kernel<kConfigs>()...};
  static constexpr F32BackwardKernel kExtras[] = {f32_backward_kernel<kConfigs.with_extras()>()...};
  return extras ? F32BackwardVariant(kExtras) : F32BackwardVariant(kPlain);
}

}  // namespace tessera::cuda::sm80
