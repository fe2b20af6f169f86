// The backward pass on tensor cores (mma.sync), keys outside, queries inside, after
// FlashAttention-2 (Dao 2023, algorithm 2).
//
// One block: one tile of C.keys keys of one key head. It keeps K, V and the accumulators of d_k and
// d_v, and walks through the tiles of C.queries queries that see its keys, of every query head of
// the group in turn, so that d_k and d_v need no sum across blocks:
//
//   sᵀ   [keys × queries] = K Qᵀ            warp: keys / warps_k × queries / warps_q
//   d_pᵀ [keys × queries] = V d_Oᵀ          the same
//   pᵀ = 2^(sᵀ − lse), d_sᵀ = pᵀ (d_pᵀ − delta)      in registers, rounded to 16 bits
//   d_v  [keys × dims] += pᵀ d_O            warp: keys / warps_k × dims / warps_q
//   d_k  [keys × dims] += d_sᵀ Q            the same
//   d_q  [queries × dims] = d_s K           warp: queries / 2 × dims / (warps / 2); added to f32
//                                           accumulators in the workspace
//
// Schedule of one step. A stage holds one step's Q, d_O and d_s; there are two.
//   1. s, d_p, p, d_s; p and d_s to shared memory
//   2. d_v, d_k with the warp's own p, d_s, which are operands in registers
//   A. the warps of the same keys meet: their p, d_s are there
//   3. d_v, d_k with the other warps' p, d_s
//   B. all warps meet: d_s of all is there; the next step's Q and d_O have arrived; nobody reads
//      this step's Q, d_O and p, nor the last step's d_s, any more
//   4. cp.async of the step after the next into this stage
//   5. d_q, while the first warps go on to the next step
// With one stage (little shared memory) cp.async of the next step takes place of 4, and all warps
// meet again after 5.
//
// L2 takes some 1.8 TB/s of f32 additions on an H200, 1 byte of d_q for 2.5 · keys operations. So
// head dim 128 has 128 keys and one block on a multiprocessor, not 64 and two blocks, which hide
// each other's barriers better.
//
// d_q. By default blocks add to the accumulators in any order: results differ between runs in the
// last bits. With `deterministic` the blocks that visit a query tile take turns, the last key tile
// first; a block's number comes from a ticket, so whoever is waited for has started.
// Accumulators are kept in the order of registers (element [r][c] of thread x of tile t at
// ((t · elements + r · columns + c) · threads + x) · 4), so that every addition is a whole vector;
// sm80_backward_d_q brings them into rows.
#pragma once

#include <array>

#include "cuda/algo/config.hpp"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/reduce.cuh"
#include "cuda/sm80/backward.hpp"
#include "cuda/sm80/backward_scores.cuh"
#include "cuda/sm80/backward_walk.cuh"
#include "cuda/tile/products.cuh"
#include "cuda/tile/shared_tile.cuh"

namespace tessera::cuda::sm80 {

/// Shared memory that a block may have on the chip that code is being generated for; 0 if that is
/// not known (PTX, which later chips compile for themselves).
#if __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
inline constexpr int kChipSharedBytes = 163 * 1024;
#elif __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890
inline constexpr int kChipSharedBytes = 99 * 1024;
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr int kChipSharedBytes = 227 * 1024;
#else
inline constexpr int kChipSharedBytes = 0;
#endif

template <BackwardConfig C>
struct BackwardTiles {
  using T = std::conditional_t<C.dtype == DType::f16, __half, __nv_bfloat16>;
  using Keys = SharedTile<T, C.keys, C.head_dim>;
  using Queries = SharedTile<T, C.queries, C.head_dim>;
  using Scores = SharedTile<T, C.keys, C.queries>;

  /// Whether the kernel can be chosen on this chip; if not, its body is left out.
  static constexpr bool kHasCode = kChipSharedBytes == 0 || C.suits(kChipSharedBytes);

  static constexpr int kWarps = C.warps_k * C.warps_q;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr bool kSharesWeights = C.warps_q > 1;  ///< p goes through shared memory.

  static constexpr int kWarpKeys = C.keys / C.warps_k;
  static constexpr int kWarpQueries = C.queries / C.warps_q;
  static constexpr int kWarpDims = C.head_dim / C.warps_q;

  static constexpr int kQueryRows = 2;  ///< Warps along the queries of d_q.
  static constexpr int kQueryRowTiles = C.queries / kQueryRows / 16;
  static constexpr int kQueryWarpDims = C.head_dim / (kWarps / kQueryRows);
  /// d_q is made in parts of so many columns of 16. One part needs d_s once; several keep it in
  /// registers, which only a short key tile leaves room for.
  static constexpr int kPartColumns = C.keys > 64 ? kQueryWarpDims / 16 : 1;
  static constexpr int kQueryParts = kQueryWarpDims / 16 / kPartColumns;
  static constexpr int kOtherParts = 2 * (C.warps_q - 1) * kWarpQueries / 16;
  static constexpr int kQueryTileFloats = C.queries * C.head_dim;

  static constexpr int kScalars = 2 * C.queries;  ///< lse and delta of one stage.
  static constexpr int kQueriesAt = 2 * Keys::kBytes;
  static constexpr int kScoresAt = kQueriesAt + 2 * C.stages * Queries::kBytes;
  static constexpr int kWeightsAt = kScoresAt + C.stages * Scores::kBytes;
  static constexpr int kScalarsAt = kWeightsAt + (kSharesWeights ? Scores::kBytes : 0);
  static constexpr int kWalkAt = kScalarsAt + C.stages * kScalars * 4;
  static constexpr int kSharedBytes = kWalkAt + kQueryWalkBytes;

  static_assert(kSharedBytes == static_cast<int>(C.shared_bytes()));
  static_assert(C.stages == 1 || C.stages == 2);
  static_assert(kThreads >= kScalars, "one thread for each scalar of a step");
  static_assert(kWarpKeys % 16 == 0 && kWarpQueries % C.warp_queries == 0 &&
                C.warp_queries % 16 == 0);
  static_assert(kWarpDims % 16 == 0 && kQueryWarpDims % 16 == 0);
};

/// Index of a query tile among those of its head: tiles of different sequences never share one.
__device__ __forceinline__ int query_tile(const Parameters& p, const Sequence& s, int b, int begin,
                                          int rows) {
  if (p.varlen) return s.q_begin / rows + b + begin / rows;
  return b * ((p.seq_q + rows - 1) / rows) + begin / rows;
}

/// What is the same for a whole warp, said so that the compiler can see it: it then keeps it in a
/// uniform register.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }

__device__ __forceinline__ Sequence uniform(const Sequence& s) {
  return {uniform(s.q_begin), uniform(s.kv_begin), uniform(s.q_rows), uniform(s.kv_rows),
          uniform(s.q_len),   uniform(s.kv_len),   uniform(s.shift)};
}

/// Number of this block, from which its tile follows. Where blocks take turns, tiles go out last
/// first, in the order in which blocks start.
__device__ __forceinline__ int block_number(const QueryAccumulators& accumulators,
                                            unsigned char* shared) {
  if (accumulators.turns == nullptr) return static_cast<int>(blockIdx.x);
  auto* const ticket = reinterpret_cast<volatile int*>(shared);
  if (threadIdx.x == 0) *ticket = atomicAdd(accumulators.ticket, 1);
  __syncthreads();
  const int number = static_cast<int>(gridDim.x) - 1 - *ticket;
  __syncthreads();
  return number;
}

/// How many blocks add to the tile of queries from i0 on before the block of `keys`: those of the
/// key tiles behind it that visit the query tile. Called by whole warps.
template <BackwardConfig C>
__device__ inline int turn_of(const Parameters& p, const Sequence& sequence, int b, int h, int i0,
                              Range keys) {
  const Range queries{i0, min(i0 + C.queries, sequence.q_len)};
  if (p.block_mask.row_offsets != nullptr) {
    BlockWalk<Side::queries, C.keys> behind(p, b, h, queries,
                                            Range{keys.begin + C.keys, sequence.kv_len});
    int turn = 0;
    for (Visit visit; behind.next(visit);) ++turn;
    return turn;
  }
  const Range seen = visible_keys(p, sequence, queries.begin, queries.end);
  return (seen.end - 1) / C.keys - keys.begin / C.keys;
}

__device__ __forceinline__ void wait_for_turn(const QueryAccumulators& accumulators, int tile,
                                              int turn) {
  if (threadIdx.x == 0) {
    while (ptx::load_acquire(accumulators.turns + tile) != turn) {
    }
  }
  __syncthreads();
}

__device__ __forceinline__ void end_turn(const QueryAccumulators& accumulators, int tile) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) ptx::add_release(accumulators.turns + tile, 1);
}

/// Adds the part-th columns of a warp's share of d_q to a query tile's accumulators.
template <BackwardConfig C, int kR, int kC>
__device__ __forceinline__ void add_d_q(const QueryAccumulators& accumulators, int tile, int part,
                                        const float (&d_q)[kR][kC][4]) {
  using S = BackwardTiles<C>;
  float* to =
      accumulators.data + static_cast<std::int64_t>(tile) * S::kQueryTileFloats + 4 * threadIdx.x;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const int element = (r * S::kQueryParts + part) * kC + c;
      ptx::reduce_add_16(to + element * (4 * S::kThreads), d_q[r][c]);
    }
  }
}

template <typename ConfigOf>
__global__ void __launch_bounds__(BackwardTiles<ConfigOf::value>::kThreads, ConfigOf::value.blocks)
    sm80_backward(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                  const __grid_constant__ QueryAccumulators accumulators, int tiles) {
  constexpr BackwardConfig C = ConfigOf::value;
  using S = BackwardTiles<C>;
  if constexpr (!S::kHasCode) return;
  using T = typename S::T;
  extern __shared__ __align__(128) unsigned char shared[];

  // Heads one after another share what they read in L2. With a block mask some key tiles may have
  // far more work than the others, so those that come first in their head start first.
  TileIndex tile;
  const int number = block_number(accumulators, shared);
  const bool is_listed = p.block_mask.row_offsets != nullptr;
  tile.h = is_listed ? number % p.heads_kv : number / tiles;
  const int place = is_listed ? number / p.heads_kv : number % tiles;
  if (!locate_tile<Side::keys>(p, place, C.keys, tile)) return;
  const int b = uniform(tile.b), h_kv = uniform(tile.h), j0 = uniform(tile.begin);
  const Sequence sequence = uniform(sequence_of(p, b));
  const bool in_turns = accumulators.turns != nullptr;

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = uniform(thread / kWarpSize);
  const int warp_key = warp / C.warps_q * S::kWarpKeys;
  const int warp_query = warp % C.warps_q * S::kWarpQueries;
  const int warp_dims = warp % C.warps_q * S::kWarpDims / 16;

  const std::uint32_t base = ptx::shared_address(shared);
  const typename S::Keys k{base}, v{base + S::Keys::kBytes};
  const typename S::Scores weights_tile{base + S::kWeightsAt};
  const auto d_s_tile = [&](int stage) {
    return typename S::Scores{base + S::kScoresAt + stage * S::Scores::kBytes};
  };
  const auto q_tile = [&](int stage) {
    return typename S::Queries{base + S::kQueriesAt + 2 * stage * S::Queries::kBytes};
  };
  const auto d_o_tile = [&](int stage) {
    return typename S::Queries{base + S::kQueriesAt + (2 * stage + 1) * S::Queries::kBytes};
  };
  float* const scalars = reinterpret_cast<float*>(shared + S::kScalarsAt);

  const Range keys{j0, min(j0 + C.keys, sequence.kv_len)};
  Range queries;
  if (!keys.empty()) queries = seeing_queries(p, sequence, keys.begin, keys.end);
  if (in_turns && is_listed && !keys.empty()) {
    queries = {0, sequence.q_len};  // what turn_of counts with
  }

  const auto load_keys = [&] {
    unsigned listed = 0;
    for (int h = h_kv * p.group; h < (h_kv + 1) * p.group; ++h) {
      listed |= listed_granules<Side::keys>(p, b, h, keys);
    }
    load_tile<S::kThreads>(k, row_of<T>(p.k, b, h_kv, sequence.kv_begin), p.k.stride_s, p.k.vectors,
                           j0, sequence.kv_len, p.head_dim, listed);
    load_tile<S::kThreads>(v, row_of<T>(p.v, b, h_kv, sequence.kv_begin), p.v.stride_s, p.v.vectors,
                           j0, sequence.kv_len, p.head_dim_v, listed);
  };
  const auto load_queries = [&](const QueryStep& step, int stage) {
    const unsigned listed = step.visit.listed;
    load_tile<S::kThreads>(q_tile(stage), row_of<T>(p.q, b, step.h, sequence.q_begin), p.q.stride_s,
                           p.q.vectors, step.visit.begin, sequence.q_len, p.head_dim, listed);
    load_tile<S::kThreads>(d_o_tile(stage), row_of<T>(g.d_o, b, step.h, sequence.q_begin),
                           g.d_o.stride_s, g.d_o.vectors, step.visit.begin, sequence.q_len,
                           p.head_dim_v, listed);
  };
  const auto read_scalar = [&](const QueryStep& step) {
    const int i = step.visit.begin + thread % C.queries;
    const bool exists = thread < S::kScalars && i < sequence.q_len;
    if (thread >= C.queries) {
      return exists ? *scalar_of(g.delta, b, step.h, sequence.q_begin + i) : 0.0f;
    }
    const float lse =
        exists ? *scalar_of(p.lse, b, step.h, sequence.q_begin + i) : minus_infinity();
    return lse == minus_infinity() ? plus_infinity() : lse * kLog2e;
  };
  const auto keep_scalar = [&](int stage, float scalar) {
    if (thread < S::kScalars) scalars[stage * S::kScalars + thread] = scalar;
  };

  float d_k[S::kWarpKeys / 16][S::kWarpDims / 8][4] = {};
  float d_v[S::kWarpKeys / 16][S::kWarpDims / 8][4] = {};
  if (!queries.empty()) load_keys();
  auto& walk = *reinterpret_cast<QueryWalk<C>*>(shared + S::kWalkAt);
  static_assert(sizeof(walk) <= kQueryWalkBytes);
  if (warp == 0) {
    walk.start(p, b, h_kv, keys, queries);
    if (C.stages > 1) walk.find(p, b, h_kv, keys, queries, 1);
  }
  __syncthreads();
  QueryStep step = walk.at(0);
  if (step.exists) {
    load_queries(step, 0);
    keep_scalar(0, read_scalar(step));
  }
  ptx::cp_async_commit();
  if (C.stages > 1 && walk.at(1).exists) {
    load_queries(walk.at(1), 1);
    keep_scalar(1, read_scalar(walk.at(1)));
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<1>();
  __syncthreads();
  for (int number = 0; step.exists; step = walk.at(++number)) {
    const int stage = number % C.stages;
    if (warp == 0) walk.find(p, b, h_kv, keys, queries, number + C.stages);
    const typename S::Queries q = q_tile(stage), d_o = d_o_tile(stage);
    const typename S::Scores d_s = d_s_tile(stage);
    const int i0 = step.visit.begin;
    const bool in_sight = all_visible(p, sequence, {i0, i0 + C.queries}, {j0, j0 + C.keys});
#pragma unroll 1
    for (int part = 0; part < S::kWarpQueries; part += C.warp_queries) {
      const int row = warp_query + part;
      float s[S::kWarpKeys / 16][C.warp_queries / 8][4] = {};
      float d_p[S::kWarpKeys / 16][C.warp_queries / 8][4] = {};
      multiply_rows<T>(s, k, warp_key, q, row);
      multiply_rows<T>(d_p, v, warp_key, d_o, row);

      const float* lse = scalars + stage * S::kScalars + row;
      const ScorePart<T, S::kWarpKeys / 16, C.warp_queries / 8> scores(
          p, sequence, b, step.h, j0 + warp_key, i0 + row, {lse, lse + C.queries});
      unsigned kept = ~0u;
      if constexpr (C.extras) {
        kept = scores.apply_extras(s, d_p);
      } else {
        scores.subtract_delta(d_p);
      }
      if (!in_sight) scores.hide_positions(s);
      if (!step.visit.full) scores.hide_blocks(s);
      ScoreOperands<S::kWarpKeys / 16, C.warp_queries / 8> operands;
      scores.finish(s, d_p, C.extras ? 1.0f : p.scale * kLog2e, kept, operands);
      if constexpr (S::kSharesWeights) {
        store_operand(weights_tile, warp_key, row, operands.weights);
      }
      store_operand(d_s, warp_key, row, operands.d_s);
      multiply_registers<T>(d_v, operands.weights, d_o, row, warp_dims);
      multiply_registers<T>(d_k, operands.d_s, q, row, warp_dims);
    }
    if constexpr (S::kSharesWeights) {
      ptx::sync_group(1 + warp / C.warps_q, C.warps_q * kWarpSize);  // A
#pragma unroll
      for (int other = 1; other < C.warps_q; ++other) {
        const int row = (warp + other) % C.warps_q * S::kWarpQueries;
        constexpr int kK = S::kWarpQueries / 16;
        multiply_columns<kK, T>(d_v, weights_tile, warp_key, row, d_o, warp_dims);
        multiply_columns<kK, T>(d_k, d_s, warp_key, row, q, warp_dims);
      }
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // B

    const QueryStep after = walk.at(number + C.stages);
    if (after.exists) load_queries(after, stage);
    ptx::cp_async_commit();
    const float scalar = after.exists ? read_scalar(after) : 0.0f;
    if (accumulators.data != nullptr) {
      const int index = step.h * accumulators.tiles + query_tile(p, sequence, b, i0, C.queries);
      if (in_turns) {
        wait_for_turn(accumulators, index, turn_of<C>(p, sequence, b, step.h, i0, keys));
      }
      std::uint32_t left[C.keys / 16][S::kQueryRowTiles][4];
#pragma unroll
      for (int part = 0; part < S::kQueryParts; ++part) {
        float d_q[S::kQueryRowTiles][2 * S::kPartColumns][4] = {};
#pragma unroll
        for (int n = 0; n < C.keys / 16; ++n) {
          if (part == 0) {
            read_transposed(left[n], d_s, 16 * n, warp % S::kQueryRows * S::kQueryRowTiles);
          }
          multiply_step<T>(d_q, left[n], k, 16 * n,
                           (warp / S::kQueryRows * S::kQueryParts + part) * S::kPartColumns);
        }
        add_d_q<C>(accumulators, index, part, d_q);
      }
      if (in_turns) end_turn(accumulators, index);
    }
    if (after.exists) keep_scalar(stage, scalar);
    if constexpr (C.stages == 1) {
      ptx::cp_async_wait<0>();
      __syncthreads();
    }
  }

  ptx::cp_async_wait<0>();
  __syncthreads();  // K and V make room for d_k and d_v
  store_accumulator<T>(k, warp_key, warp_dims * 16, d_k, p.scale);
  store_accumulator<T>(v, warp_key, warp_dims * 16, d_v, p.keep_scale);
  __syncthreads();
  if (g.d_k.data != nullptr) {
    store_tile<S::kThreads>(k, row_of<T>(g.d_k, b, h_kv, sequence.kv_begin), g.d_k.stride_s,
                            g.d_k.vectors, j0, sequence.kv_rows, p.head_dim);
  }
  if (g.d_v.data != nullptr) {
    store_tile<S::kThreads>(v, row_of<T>(g.d_v, b, h_kv, sequence.kv_begin), g.d_v.stride_s,
                            g.d_v.vectors, j0, sequence.kv_rows, p.head_dim_v);
  }
}

/// d_q from its accumulators: one block for each query tile of each head, threads as above.
template <typename ConfigOf>
__global__ void __launch_bounds__(BackwardTiles<ConfigOf::value>::kThreads)
    sm80_backward_d_q(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                      const __grid_constant__ QueryAccumulators accumulators) {
  constexpr BackwardConfig C = ConfigOf::value;
  using S = BackwardTiles<C>;
  if constexpr (!S::kHasCode) return;
  using T = typename S::T;
  extern __shared__ __align__(128) unsigned char shared[];
  TileIndex tile;
  tile.h = static_cast<int>(blockIdx.x) / accumulators.tiles;
  const int x = static_cast<int>(blockIdx.x) % accumulators.tiles;
  if (!locate_tile<Side::queries>(p, x, C.queries, tile)) return;
  const Sequence sequence = sequence_of(p, tile.b);

  const std::int64_t index = static_cast<std::int64_t>(tile.h) * accumulators.tiles +
                             query_tile(p, sequence, tile.b, tile.begin, C.queries);
  const auto* from = reinterpret_cast<const float4*>(accumulators.data) +
                     index * (S::kQueryTileFloats / 4) + threadIdx.x;
  constexpr int kColumnTiles = S::kQueryWarpDims / 8;
  float d_q[S::kQueryRowTiles][kColumnTiles][4];
#pragma unroll
  for (int r = 0; r < S::kQueryRowTiles; ++r) {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const float4 element = from[(r * kColumnTiles + c) * S::kThreads];
      d_q[r][c][0] = element.x;
      d_q[r][c][1] = element.y;
      d_q[r][c][2] = element.z;
      d_q[r][c][3] = element.w;
    }
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const typename S::Queries rows{ptx::shared_address(shared)};
  store_accumulator<T>(rows, warp % S::kQueryRows * S::kQueryRowTiles * 16,
                       warp / S::kQueryRows * S::kQueryWarpDims, d_q, p.scale);
  __syncthreads();
  store_tile<S::kThreads>(rows, row_of<T>(g.d_q, tile.b, tile.h, sequence.q_begin), g.d_q.stride_s,
                          g.d_q.vectors, tile.begin, sequence.q_rows, p.head_dim);
}

template <BackwardConfig C>
Status enqueue_backward(const Parameters& p, const Gradients& g,
                        const QueryAccumulators& accumulators, cudaStream_t stream) {
  using S = BackwardTiles<C>;
  const std::int64_t tiles = tiles_per_head(p, p.seq_kv, C.keys);
  if (Status status =
          launch("sm80_backward", sm80_backward<Constant<C>>, tiles * p.heads_kv, S::kThreads,
                 S::kSharedBytes, stream, p, g, accumulators, static_cast<int>(tiles));
      !status.ok()) {
    return status;
  }
  if (g.d_q.data == nullptr) return {};
  const std::int64_t blocks = static_cast<std::int64_t>(accumulators.tiles) * p.heads_q;
  return launch("sm80_backward_d_q", sm80_backward_d_q<Constant<C>>, blocks, S::kThreads,
                S::Queries::kBytes, stream, p, g, accumulators);
}

template <BackwardConfig C>
constexpr BackwardVariant variant() {
  return {C, enqueue_backward<C>};
}

/// Kernels for each config: both dtypes, without and with extras.
template <BackwardConfig... kConfigs>
constexpr std::array<BackwardVariant, 4 * sizeof...(kConfigs)> backward_variants() {
  return {variant<kConfigs.with(DType::f16, false)>()...,
          variant<kConfigs.with(DType::f16, true)>()...,
          variant<kConfigs.with(DType::bf16, false)>()...,
          variant<kConfigs.with(DType::bf16, true)>()...};
}

}  // namespace tessera::cuda::sm80
