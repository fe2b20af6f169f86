// The backward pass on Hopper: wgmma, the copy engine and specialised warpgroups, after
// FlashAttention-3 (Shah et al. 2024); keys outside, queries inside.
//
// One block: one tile of 128 keys of one key head, 64 for each of two consumer warpgroups, which
// keep their d_k and d_v in registers; a third loads. It goes through the tiles of C.queries
// queries that see its keys, 64 queries (a part) at a time:
//
//   sᵀ   [64 keys × 64 queries] = K Qᵀ       f32, in registers
//   d_pᵀ [64 keys × 64 queries] = V d_Oᵀ     the same
//   pᵀ = 2^(sᵀ − lse), d_sᵀ = pᵀ (d_pᵀ − delta)     rounded to 16 bits: operands in registers;
//                                            d_sᵀ also to shared memory
//   d_v [64 keys × D] += pᵀ d_O
//   d_k [64 keys × D] += d_sᵀ Q
//   d_q [queries × D] = d_s K                over all 128 keys: half of it for each consumer
//                                            (columns at D = 128, queries at D = 64); added to f32
//                                            accumulators in the workspace
//
// Schedule of one consumer. Products run in the order in which they are started:
//
//   start s of this part
//   wait for d_v, d_k of the last part: its registers, Q and d_O are free
//   start d_p
//   wait for s, d_p; p, d_s
//   start d_q of the last step, once the other consumer's d_s of it is there, too
//   start d_v, d_k
//   d_s to shared memory, once both have read what was there
//   wait for d_q; add it
//
// So d_q is a step late, and nobody waits for the other's d_s. While one consumer computes
// exponentials, the tensor cores have the other's products. (d_q under way beside s and d_p would
// take more registers than there are.)
//
// The producer walks through the mask (sm80/backward_walk.cuh), loads Q, d_O, lse and delta of two
// steps, and says with a step that does not exist that there are no more.
//
// The copy engine fills with zeros what lies beyond the tensor. Rows behind the used length that
// lie within it, and those of unlisted mask blocks, come along; consumers overwrite them with
// zeros, all with the same, since 0 · NaN is NaN. Tensors whose rows are not whole 16-byte vectors
// the producer's threads copy.
//
// How d_q is added up, in which order, and how pieces of a tile are merged: as in
// sm80/backward.cuh. Every consumer warp has the place there that a warp of an 8 × 1 grid has.
#pragma once

#include <array>

#include "cuda/algo/config.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/registers.cuh"
#include "cuda/sm90/backward_consumer.cuh"
#include "cuda/sm90/backward_producer.cuh"
#include "cuda/sm90/tensor_map.hpp"

namespace tessera::cuda::sm90 {

template <typename ConfigOf>
__global__ void __launch_bounds__(BackwardTraits<ConfigOf::value>::kThreads, 1)
    sm90_backward(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                  const __grid_constant__ QueryAccumulators accumulators,
                  const __grid_constant__ TileOrder order,
                  const __grid_constant__ BackwardMaps maps, bool copies, int tiles) {
  constexpr BackwardConfig C = ConfigOf::value;
  using Traits = BackwardTraits<C>;
  extern __shared__ __align__(1024) unsigned char shared[];

  const bool in_turns = accumulators.turns != nullptr;
  const int number = uniform(sm80::block_number(accumulators, shared));
  const TileItem item = item_of_block(order, number);
  if (item.tile < 0) return;
  TileIndex tile;
  const int place = tile_of_block<Side::keys>(p, item.tile, tiles, tile.h);
  if (!locate_tile<Side::keys>(p, place, C.keys, tile)) {
    if (in_turns) sm80::end_turns(accumulators, number);
    return;
  }
  tile = {uniform(tile.b), uniform(tile.h), uniform(tile.begin)};
  BackwardBlock block{number, tile.b, tile.h, tile.begin, uniform(sequence_of(p, tile.b)), {}, 0};
  const Range keys{tile.begin, uniform(min(tile.begin + C.keys, block.sequence.kv_len))};
  block.area = uniform(sm80::query_area<C>(p, block.sequence, tile, item, keys, in_turns));
  block.listed = listed_keys(p, tile.b, tile.h, keys);

  const BackwardMemory<C> memory(shared);
  if (threadIdx.x == 0) memory.initialise();
  __syncthreads();
  if (uniform(static_cast<int>(threadIdx.x / kGroupThreads)) == Traits::kConsumers) {
    ptx::give_registers<Traits::kProducerRegisters>();
    const bool all = C.extras && copies;
    if (all || threadIdx.x < Traits::kConsumerThreads + kWarpSize) {
      BackwardProducer<C>(p, g, maps, copies, block, memory).run();
    }
  } else {
    ptx::take_registers<Traits::kConsumerRegisters>();
    sm80::KeyGradient<C> d_k = {}, d_v = {};
    BackwardConsumer<C>(p, accumulators, copies, block, memory).run(d_k, d_v);
    if (item.pieces > 1) {
      sm80::keep_partial<C>(order, number, d_k, d_v);
    } else {
      ptx::sync_group(kBackwardMeetingBarrier, Traits::kConsumerThreads);  // K and V are read
      sm80::store_key_gradients<C>(p, g, tile, block.sequence, shared, d_k, d_v);
    }
    if (in_turns) {
      ptx::sync_group(kBackwardMeetingBarrier, Traits::kConsumerThreads);
      sm80::note_end(accumulators, number);
    }
  }
}

/// Nothing if the copy engine cannot read one of the tensors.
template <BackwardConfig C>
std::optional<BackwardMaps> backward_maps(const Parameters& p, const Gradients& g) {
  const std::int64_t batch = p.varlen ? 1 : p.batch;
  if (p.seq_q == 0 || p.seq_kv == 0) return std::nullopt;
  const auto map = [&](const Rows& rows, int columns, int tokens, int heads, int box_rows) {
    return tensor_map(rows, {C.dtype, columns, tokens, heads, batch, box_rows, 64});
  };
  const auto q = map(p.q, p.head_dim, p.seq_q, p.heads_q, C.queries);
  const auto k = map(p.k, p.head_dim, p.seq_kv, p.heads_kv, C.keys);
  const auto v = map(p.v, p.head_dim_v, p.seq_kv, p.heads_kv, C.keys);
  const auto d_o = map(g.d_o, p.head_dim_v, p.seq_q, p.heads_q, C.queries);
  if (!q || !k || !v || !d_o) return std::nullopt;
  return BackwardMaps{*q, *k, *v, *d_o};
}

/// `C` without extras cannot copy: what the engine does not read is for the kernel with them.
template <BackwardConfig C>
Status enqueue_backward(const Parameters& p, const Gradients& g,
                        const QueryAccumulators& accumulators, const TileOrder& order,
                        const Tiles& tiles, cudaStream_t stream) {
  using Traits = BackwardTraits<C>;
  const std::optional<BackwardMaps> maps = backward_maps<C>(p, g);
  if constexpr (!C.extras) {
    if (!maps) {
      return enqueue_backward<C.with(C.dtype, true)>(p, g, accumulators, order, tiles, stream);
    }
  }
  const bool in_order = order.items != nullptr;
  const auto per_head = static_cast<int>(tiles.per_head);
  if (Status status = launch("sm90_backward", sm90_backward<Constant<C>>,
                             in_order ? tiles.most_items() : tiles.count * order.splits,
                             Traits::kThreads, C.shared_bytes(), stream, p, g, accumulators, order,
                             maps ? *maps : BackwardMaps{}, !maps.has_value(), per_head);
      !status.ok()) {
    return status;
  }
  return sm80::finish_backward<C>(p, g, accumulators, order, tiles, stream);
}

/// Kernels for a config: both dtypes, without and with extras.
template <BackwardConfig C>
constexpr std::array<BackwardVariant, 4> backward_variants() {
  return {BackwardVariant{C.with(DType::f16, false), enqueue_backward<C.with(DType::f16, false)>},
          BackwardVariant{C.with(DType::f16, true), enqueue_backward<C.with(DType::f16, true)>},
          BackwardVariant{C.with(DType::bf16, false), enqueue_backward<C.with(DType::bf16, false)>},
          BackwardVariant{C.with(DType::bf16, true), enqueue_backward<C.with(DType::bf16, true)>}};
}

}  // namespace tessera::cuda::sm90
