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
// last bits. With `deterministic` they take turns (backward_turns.cuh). Accumulators are kept in
// the order of registers (element [r][c] of thread x of tile t at
// ((t · elements + r · columns + c) · threads + x) · 4), so that every addition is a whole vector;
// sm80_backward_d_q brings them into rows.
//
// Pieces. Several blocks may share a key tile's queries: with few key heads each has some heads of
// the group, with a block mask (algo/tile_order.hpp) a range of the queries. They leave d_k and d_v
// in f32 in the workspace, in the order of registers; sm80_backward_merge adds them up, in the
// order of pieces.
#pragma once

#include <array>

#include "cuda/algo/config.hpp"
#include "cuda/algo/tile_order.cuh"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/barrier.cuh"
#include "cuda/sm80/backward_passes.cuh"
#include "cuda/sm80/backward_scores.cuh"
#include "cuda/sm80/backward_tiles.cuh"
#include "cuda/sm80/backward_turns.cuh"
#include "cuda/sm80/backward_walk.cuh"

namespace tessera::cuda::sm80 {

template <typename ConfigOf>
__global__ void __launch_bounds__(BackwardTiles<ConfigOf::value>::kThreads, ConfigOf::value.blocks)
    sm80_backward(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                  const __grid_constant__ QueryAccumulators accumulators,
                  const __grid_constant__ TileOrder order, int tiles) {
  constexpr BackwardConfig C = ConfigOf::value;
  using S = BackwardTiles<C>;
  if constexpr (!S::kHasCode) return;
  using T = typename S::T;
  extern __shared__ __align__(128) unsigned char shared[];

  const bool in_turns = accumulators.turns != nullptr;
  const int block = uniform(block_number(accumulators, shared));
  const TileItem item = item_of_block(order, block);
  if (item.tile < 0) return;
  TileIndex tile;
  const int place = tile_of_block<Side::keys>(p, item.tile, tiles, tile.h);
  if (!locate_tile<Side::keys>(p, place, C.keys, tile)) {
    if (in_turns) end_turns(accumulators, block);
    return;
  }
  const int b = uniform(tile.b), h_kv = uniform(tile.h), j0 = uniform(tile.begin);
  const int pieces = uniform(item.pieces);
  const Sequence sequence = uniform(sequence_of(p, b));

  const int warp = uniform(static_cast<int>(threadIdx.x / kWarpSize));
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

  const Range keys{j0, uniform(min(j0 + C.keys, sequence.kv_len))};
  const QueryArea area =
      uniform(query_area<C>(p, sequence, tile, item, keys, accumulators.turns != nullptr));

  const auto load_keys = [&] {
    const unsigned listed = listed_keys(p, b, h_kv, keys);
    load_tile<S::kThreads>(k, row_of<T>(p.k, b, h_kv, sequence.kv_begin), p.k.stride_s, p.k.vectors,
                           j0, sequence.kv_len, p.head_dim, listed);
    load_tile<S::kThreads>(v, row_of<T>(p.v, b, h_kv, sequence.kv_begin), p.v.stride_s, p.v.vectors,
                           j0, sequence.kv_len, p.head_dim_v, listed);
  };
  const auto load_queries = [&](const QueryStep& step, int stage, unsigned thread) {
    const unsigned listed = step.visit.listed;
    load_tile<S::kThreads>(q_tile(stage), row_of<T>(p.q, b, step.h, sequence.q_begin), p.q.stride_s,
                           p.q.vectors, step.visit.begin, sequence.q_len, p.head_dim, listed,
                           thread);
    load_tile<S::kThreads>(d_o_tile(stage), row_of<T>(g.d_o, b, step.h, sequence.q_begin),
                           g.d_o.stride_s, g.d_o.vectors, step.visit.begin, sequence.q_len,
                           p.head_dim_v, listed, thread);
  };
  const auto read_scalar = [&](const QueryStep& step, unsigned thread) {
    const int i = step.visit.begin + static_cast<int>(thread % C.queries);
    const bool exists = thread < S::kScalars && i < sequence.q_len;
    if (thread >= C.queries) {
      return exists ? *scalar_of(g.delta, b, step.h, sequence.q_begin + i) : 0.0f;
    }
    const float lse =
        exists ? *scalar_of(p.lse, b, step.h, sequence.q_begin + i) : minus_infinity();
    return lse == minus_infinity() ? plus_infinity() : lse * kLog2e;
  };
  const auto keep_scalar = [&](int stage, float scalar, unsigned thread) {
    if (thread < S::kScalars) scalars[stage * S::kScalars + thread] = scalar;
  };

  float d_k[S::kWarpKeys / 16][S::kWarpDims / 8][4] = {};
  float d_v[S::kWarpKeys / 16][S::kWarpDims / 8][4] = {};
  auto& walk = *reinterpret_cast<QueryWalk<C>*>(shared + S::kWalkAt);
  static_assert(sizeof(walk) <= kQueryWalkBytes);
  if (warp == 0) {  // meanwhile the others load
    walk.start(p, sequence, area);
    if (C.stages > 1) walk.find(p, sequence, area, 1);
  }
  if (!area.queries.empty()) load_keys();
  __syncthreads();
  QueryStep step = walk.at(0);
  float first_scalars[C.stages];  // on their way together, and with the tiles
#pragma unroll
  for (int stage = 0; stage < C.stages; ++stage) {
    const QueryStep ahead = walk.at(stage);
    first_scalars[stage] = ahead.exists ? read_scalar(ahead, threadIdx.x) : 0.0f;
  }
#pragma unroll
  for (int stage = 0; stage < 2; ++stage) {
    if (stage < C.stages && walk.at(stage).exists) {
      load_queries(walk.at(stage), stage, threadIdx.x);
    }
    ptx::cp_async_commit();
  }
#pragma unroll
  for (int stage = 0; stage < C.stages; ++stage) {
    keep_scalar(stage, first_scalars[stage], threadIdx.x);
  }
  ptx::cp_async_wait<1>();
  __syncthreads();
  int added_to = -1;  // what the warp has added to without having passed on the turn
  for (int number = 0; step.exists; step = walk.at(++number)) {
    const int stage = number % C.stages;
    if (warp == 0) walk.find(p, sequence, area, number + C.stages);
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
      const int lane = lane_id_anew();
      if constexpr (S::kSharesWeights) {
        store_operand(weights_tile, warp_key, row, operands.weights, lane);
      }
      store_operand(d_s, warp_key, row, operands.d_s, lane);
      multiply_registers<T>(d_v, operands.weights, d_o, row, warp_dims);
      multiply_registers<T>(d_k, operands.d_s, q, row, warp_dims);
    }
    if (added_to >= 0) end_turn(accumulators, added_to);
    if constexpr (S::kSharesWeights) {
      ptx::sync_group(1 + warp / C.warps_q, C.warps_q * kWarpSize);  // A
#pragma unroll
      for (int other = 1; other < C.warps_q; ++other) {
        const int row = (warp + other) % C.warps_q * S::kWarpQueries;
        constexpr int kK = S::kWarpQueries / 16;
        const int lane = lane_id_anew();
        multiply_columns<kK, T>(d_v, weights_tile, warp_key, row, d_o, warp_dims, lane);
        multiply_columns<kK, T>(d_k, d_s, warp_key, row, q, warp_dims, lane);
      }
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // B

    const QueryStep after = walk.at(number + C.stages);
    const unsigned thread = thread_anew();
    if (after.exists) load_queries(after, stage, thread);
    ptx::cp_async_commit();
    const float scalar = after.exists ? read_scalar(after, thread) : 0.0f;
    if (accumulators.data != nullptr) {
      const int index = step.h * accumulators.tiles + query_tile(p, sequence, b, i0, C.queries);
      const int turns = index * S::kWarps + warp;
      const int lane = lane_id_anew();
      std::uint32_t left[C.keys / 16][S::kQueryRowTiles][4];
#pragma unroll
      for (int part = 0; part < S::kQueryParts; ++part) {
        float d_q[S::kQueryRowTiles][2 * S::kPartColumns][4] = {};
#pragma unroll
        for (int n = 0; n < C.keys / 16; ++n) {
          if (part == 0) {
            read_transposed(left[n], d_s, 16 * n, warp % S::kQueryRows * S::kQueryRowTiles, lane);
          }
          multiply_step<T>(d_q, left[n], k, 16 * n,
                           (warp / S::kQueryRows * S::kQueryParts + part) * S::kPartColumns, lane);
        }
        if (part == 0 && in_turns) wait_for_turn(accumulators, turns, step.turn, block);
        add_d_q<C>(accumulators, index, part, d_q, thread);
      }
      if (in_turns) added_to = turns;
    }
    if (after.exists) keep_scalar(stage, scalar, thread_anew());
    if constexpr (C.stages == 1) {
      ptx::cp_async_wait<0>();
      __syncthreads();
    }
  }

  if (added_to >= 0) end_turn(accumulators, added_to);
  if (pieces > 1) {
    keep_partial<C>(order, block, d_k, d_v);
  } else {
    ptx::cp_async_wait<0>();
    __syncthreads();  // K and V make room for d_k and d_v
    store_key_gradients<C>(p, g, tile, sequence, shared, d_k, d_v);
  }
  if (in_turns) end_turns(accumulators, block);
}

template <BackwardConfig C>
Status enqueue_backward(const Parameters& p, const Gradients& g,
                        const QueryAccumulators& accumulators, const TileOrder& order,
                        const Tiles& tiles, cudaStream_t stream) {
  using S = BackwardTiles<C>;
  const bool in_order = order.items != nullptr;
  const auto per_head = static_cast<int>(tiles.per_head);
  if (Status status =
          launch("sm80_backward", sm80_backward<Constant<C>>,
                 in_order ? tiles.most_items() : tiles.count * order.splits, S::kThreads,
                 S::kSharedBytes, stream, p, g, accumulators, order, per_head);
      !status.ok()) {
    return status;
  }
  return finish_backward<C>(p, g, accumulators, order, tiles, stream);
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
