// Forward attention on mma.sync (Ampere and every later chip), after FlashAttention-2.
//
// One block computes one tile of one query head's rows:
//
//   Q [tile_m × D] shared · K, V [tile_n × D], [tile_n × Dv] shared, `stages` of each
//   each warp: S [rows × tile_n] f32 → P 16-bit, O [rows × Dv] f32, in registers throughout
//
//   load Q, K₀, V₀
//   for each key tile j that the rows see:
//     wait for K_j, V_j; barrier; start to load K_j+1, V_j+1 into the stage that j − 1 has left
//     S = Q K_jᵀ → features → mask → P = 2^(S − m), row sums
//     O += P V_j
//   O / row sums → shared (where Q was) → global, 16 bytes at a time
//
// A warp owns its rows from the first score to the last store, so nothing but K and V is shared and
// one barrier a tile is enough: behind it all warps have arrived at tile j, hence done with j − 1,
// and every thread has waited for its own copies of tile j. Q's warp-own rows are overwritten at
// the end by the same warp only.
//
// Two row tiles a warp (32 rows) use every fragment of K and V twice, which is what keeps shared
// memory from being the bottleneck; O of head dims above 128 leaves registers for one, and then Q's
// fragments stay in registers. The two or three blocks of a multiprocessor overlap: while one's
// warps compute weights, another's multiply.
//
// Key tiles outside causal mask, window, used length or block mask are not visited, and a warp
// skips those that none of its rows sees; those whose every element counts run without element
// tests. Masked, unused and unlisted elements get −inf, so
// their weight is 0; their memory is zero in shared memory where it must not be read at all
// (load_tile), so that 0 · v is 0.
//
// Blocks of the query heads that share a key head are neighbours in the grid, and so are the tiles
// of one sequence: K and V come from L2. With a block mask tiles go out in the order of
// algo/tile_order.hpp. A tile in pieces ends in one partial result for each, O / row sums and LSE,
// f32, in the workspace; forward_merge merges them by their LSE, in their order.
#pragma once

#include <algorithm>

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/config.hpp"
#include "cuda/algo/element.cuh"
#include "cuda/algo/score_tile.cuh"
#include "cuda/algo/sequence.cuh"
#include "cuda/algo/softmax.cuh"
#include "cuda/algo/tile_order.cuh"
#include "cuda/algo/uniform.cuh"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/opaque.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/sm80/forward_variants.hpp"
#include "cuda/sm80/key_tiles.cuh"
#include "cuda/tile/products.cuh"
#include "cuda/tile/shared_tile.cuh"

namespace tessera::cuda::sm80 {

/// Configs are chosen so that they just fit Hopper's registers; the compiler needs a few more for
/// earlier chips, where most have room for two blocks only in any case.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kTight = false;
#else
inline constexpr bool kTight = true;
#endif

/// Everything about a config that is known when compiling.
template <ForwardConfig C>
struct ForwardTraits {
  using T = typename ElementOf<C.dtype>::Type;
  static constexpr int kThreads = C.warps * kWarpSize;
  static constexpr int kRowTiles = C.tile_m / C.warps / 16;  ///< 16-row tiles of a warp.
  static constexpr int kScoreTiles = C.tile_n / 8;
  static constexpr int kOutTiles = C.head_dim_v / 8;
  /// Steps of 16 along D whose part of Q stays in registers, where they have room; the others are
  /// read again for every key tile.
  static constexpr int kKeptQ = kRowTiles > 1       ? 0
                                : C.head_dim <= 192 ? C.head_dim / 16
                                : !kTight           ? 6
                                : C.extras          ? 8
                                                    : 12;
  static constexpr int kPartialFloats = C.partial_floats();
  static_assert(C.tile_m == kRowTiles * 16 * C.warps && C.tile_n % 16 == 0);

  using QTile = SharedTile<T, C.tile_m, C.head_dim>;
  using KTile = SharedTile<T, C.tile_n, C.head_dim>;
  using VTile = SharedTile<T, C.tile_n, C.head_dim_v>;
  using OTile = SharedTile<T, C.tile_m, C.head_dim_v>;
  static_assert(OTile::kBytes <= QTile::kBytes && OTile::kPanel == QTile::kPanel,
                "O takes the place of Q, row by row");
};

template <ForwardConfig C>
__device__ __forceinline__ TileItem item_of(const TileOrder& order) {
  const int block = static_cast<int>(blockIdx.x);
  if constexpr (!C.listed) return {block, 0, 1};
  return item_of_block(order, block);
}

/// Where item x has its partial result: O [tile_m × Dv], LSE [tile_m].
template <ForwardConfig C>
__device__ __forceinline__ float* partial_of(const TileOrder& order, int x) {
  return order.partials + static_cast<std::int64_t>(x) * ForwardTraits<C>::kPartialFloats;
}

/// The work of one block on one tile of rows.
template <ForwardConfig C>
class ForwardTile {
  using Traits = ForwardTraits<C>;
  using T = typename Traits::T;
  using Rules = ScoreTile<T, Traits::kRowTiles, Traits::kScoreTiles>;
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kRowTiles = Traits::kRowTiles;
  using Walk =
      std::conditional_t<C.listed, BlockWalk<Side::queries, C.tile_n>, EveryTile<C.tile_n>>;

 public:
  __device__ ForwardTile(const Parameters& p, const TileOrder& order, const TileIndex& tile,
                         std::uint32_t shared)
      : p_(p),
        order_(order),
        tile_{uniform(tile.b), uniform(tile.h), uniform(tile.begin)},
        sequence_(uniform(sequence_of(p, tile.b))),
        rows_(uniform(Range{tile_.begin, min(tile_.begin + C.tile_m, sequence_.q_len)})),
        q_{shared},
        k_{shared + Traits::QTile::kBytes},
        v_{k_.base + C.stages * Traits::KTile::kBytes},
        h_kv_(uniform(tile.h / p.group)),
        warp_row_(uniform(static_cast<int>(threadIdx.x / kWarpSize)) * 16 * kRowTiles),
        rules_(p, sequence_, tile_.b, tile_.h, tile_.begin),
        scored_(C.extras && Rules::needed(p)),
        softmax_(scored_ ? 1.0f : p.scale * kLog2e) {}

  __device__ void run(const TileItem& item) {
    Range keys{0, 0};
    if (!rows_.empty()) keys = uniform(visible_keys(p_, sequence_, rows_.begin, rows_.end));
    if (!keys.empty()) load_q();
    if (C.listed)
      keys = uniform(piece_range<Side::queries, C.tile_n>(p_, tile_.b, tile_.h, rows_, item, keys));
    Walk walk(p_, tile_.b, tile_.h, rows_, keys);
    for_each_key_tile<C.tile_n, C.stages, 16 * kRowTiles, C.listed>(
        p_, sequence_, rows_, warp_row_, walk,
        [this](const Visit& visit, int stage) { load_kv(visit, stage); }, [this] { keep_q(); },
        [this](int begin, bool positions, bool blocks, int stage) {
          attend(begin, positions, blocks, stage);
        });
    finish();
  }

 private:
  __device__ __forceinline__ void load_q() {
    const T* q = row_of<const T>(p_.q, tile_.b, tile_.h, sequence_.q_begin);
    load_tile<kThreads>(q_, q, p_.q.stride_s, p_.q.vectors, rows_.begin, rows_.end, p_.head_dim);
  }

  __device__ __forceinline__ void load_kv(const Visit& visit, int stage) {
    const T* k = row_of<const T>(p_.k, tile_.b, h_kv_, sequence_.kv_begin);
    const T* v = row_of<const T>(p_.v, tile_.b, h_kv_, sequence_.kv_begin);
    load_tile<kThreads>(k_stage(stage), k, p_.k.stride_s, p_.k.vectors, visit.begin,
                        sequence_.kv_len, p_.head_dim, visit.listed);
    load_tile<kThreads>(v_stage(stage), v, p_.v.stride_s, p_.v.vectors, visit.begin,
                        sequence_.kv_len, p_.head_dim_v, visit.listed);
    ptx::cp_async_commit();
  }

  __device__ __forceinline__ void keep_q() {
#pragma unroll
    for (int k = 0; k < Traits::kKeptQ; ++k) read_a(q_kept_[k], q_, warp_row_, k);
  }

  /// The key tile from `begin` on. Some elements do not count because of their `positions`, or of
  /// the block mask (`blocks`).
  __device__ __forceinline__ void attend(int begin, bool positions, bool blocks, int stage) {
    typename Rules::Scores s = {};
    multiply_qk(s, k_stage(stage));
    if constexpr (C.extras) {
      if (scored_) rules_.score(s, begin);
    }
    if (C.listed && blocks) rules_.mask_blocks(s, begin);
    if (positions) rules_.mask_positions(s, begin);
    typename Rules::Weights weights;
    softmax_.weigh(s, weights, [this](int r, int half, float by) {
#pragma unroll
      for (int n = 0; n < Traits::kOutTiles; ++n) {
        o_[r][n][2 * half] *= by;
        o_[r][n][2 * half + 1] *= by;
      }
    });
    if constexpr (C.extras) {
      if (p_.dropout_threshold != 0) rules_.drop(weights, begin);
    }
    multiply_registers<T>(o_, weights, v_stage(stage), 0, 0);
  }

  /// S [rows × tile_n] += Q [rows × D] Kᵀ [D × tile_n].
  __device__ __forceinline__ void multiply_qk(typename Rules::Scores& s,
                                              const typename Traits::KTile& k_tile) {
#pragma unroll
    for (int k = 0; k < C.head_dim / 16; ++k) {
      std::uint32_t q[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (k < Traits::kKeptQ) {
#pragma unroll
          for (int e = 0; e < 4; ++e) q[r][e] = q_kept_[k][e];
        } else {
          read_a(q[r], q_, warp_row_ + 16 * r, k);
        }
      }
#pragma unroll
      for (int n = 0; n < C.tile_n / 16; ++n) {
        std::uint32_t b[4];
        read_b_transposed(b, k_tile, 16 * n, k);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          ptx::mma_m16n8k16<T>(s[r][2 * n], q[r], b[0], b[1]);
          ptx::mma_m16n8k16<T>(s[r][2 * n + 1], q[r], b[2], b[3]);
        }
      }
    }
  }

  /// Divides by the row sums and stores o and lse of every row that exists.
  __device__ __forceinline__ void finish() {
    unsigned thread = threadIdx.x;
    int b = tile_.b;
    ptx::make_opaque(thread);  // so that none of this takes registers before
    ptx::make_opaque(b);
    const Sequence sequence = sequence_of(p_, b);
    const int lane = static_cast<int>(thread % kWarpSize);
    const TileItem item = item_of<C>(order_);
    const bool with_sink = C.extras && p_.sink != nullptr && item.piece == 0;  // it counts once
    const float sink = with_sink ? p_.sink[tile_.h] : minus_infinity();
    float* const partial =
        item.pieces > 1 ? partial_of<C>(order_, static_cast<int>(blockIdx.x)) : nullptr;
    const typename Traits::OTile o_tile{q_.base};
    __syncwarp();  // all lanes have read Q
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row_ + 16 * r + 8 * half + lane / 4;
        const int i = tile_.begin + row;
        auto [scale, lse] = softmax_.finish(r, half, sink);
        const bool used = i < rows_.end;
        if (!used) lse = minus_infinity();
        if constexpr (C.extras) scale *= p_.keep_scale;
        if (partial != nullptr) {
          if (lane % 4 == 0) partial[C.tile_m * C.head_dim_v + row] = lse;
          auto* const to = reinterpret_cast<float2*>(partial + row * C.head_dim_v) + lane % 4;
#pragma unroll
          for (int n = 0; n < Traits::kOutTiles; ++n) {
            to[4 * n] = {o_[r][n][2 * half] * scale, o_[r][n][2 * half + 1] * scale};
          }
          continue;
        }
        if (p_.lse.data != nullptr && lane % 4 == 0 && i < sequence.q_rows) {
          *scalar_of(p_.lse, tile_.b, tile_.h, sequence.q_begin + i) = lse;
        }
#pragma unroll
        for (int n = 0; n < Traits::kOutTiles; ++n) {
          ptx::store_shared_4(
              o_tile.at(row, n) + lane % 4 * 4,
              used ? ptx::pack<T>(o_[r][n][2 * half] * scale, o_[r][n][2 * half + 1] * scale) : 0);
        }
      }
    }
    if (partial != nullptr) return;
    __syncwarp();
    T* o = row_of<T>(p_.o, tile_.b, tile_.h, sequence.q_begin);
    store_rows<16 * kRowTiles>(o_tile, warp_row_, o, p_.o.stride_s, p_.o.vectors, tile_.begin,
                               sequence.q_rows, p_.head_dim_v);
  }

  __device__ __forceinline__ typename Traits::KTile k_stage(int stage) const {
    return {k_.base + stage * Traits::KTile::kBytes};
  }
  __device__ __forceinline__ typename Traits::VTile v_stage(int stage) const {
    return {v_.base + stage * Traits::VTile::kBytes};
  }

  const Parameters& p_;
  const TileOrder& order_;
  const TileIndex tile_;
  const Sequence sequence_;
  const Range rows_;  ///< Used rows of the tile.
  const typename Traits::QTile q_;
  const typename Traits::KTile k_;  ///< Stage 0.
  const typename Traits::VTile v_;
  const int h_kv_;
  const int warp_row_;  ///< The warp's first row within the tile.
  const Rules rules_;
  const bool scored_;  ///< Scores take more than a scale.
  OnlineSoftmax<T, kRowTiles> softmax_;
  std::uint32_t q_kept_[std::max(Traits::kKeptQ, 1)][4];
  float o_[kRowTiles][Traits::kOutTiles][4] = {};
};

template <typename C>
__global__ void __launch_bounds__(ForwardTraits<C::value>::kThreads,
                                  kTight ? C::value.blocks : std::min(C::value.blocks, 2))
    forward(const __grid_constant__ Parameters p, const __grid_constant__ TileOrder order,
            int tiles) {
  constexpr ForwardConfig kC = C::value;
  extern __shared__ __align__(128) std::byte shared[];
  const TileItem item = item_of<kC>(order);
  if (item.tile < 0) return;
  TileIndex tile;
  const int place = tile_of_block<Side::queries>(p, item.tile, tiles, tile.h);
  if (!locate_tile<Side::queries>(p, place, kC.tile_m, tile)) return;
  ForwardTile<kC>(p, order, tile, ptx::shared_address(shared)).run(item);
}

inline constexpr int kMergeThreads = 256;

/// exp(lse − highest); 0 where there is nothing.
__device__ __forceinline__ float relative_weight(float lse, float highest) {
  return lse == minus_infinity() ? 0.0f : expf(lse - highest);
}

/// O and LSE of a tile from those of its pieces: one block for each item, of which those with first
/// pieces work. A warp has a row at a time.
template <typename C>
__global__ void __launch_bounds__(kMergeThreads)
    forward_merge(const __grid_constant__ Parameters p, const __grid_constant__ TileOrder order,
                  int tiles) {
  constexpr ForwardConfig kC = C::value;
  using T = typename ForwardTraits<kC>::T;
  constexpr int kStride = ForwardTraits<kC>::kPartialFloats;
  const int x = static_cast<int>(blockIdx.x);
  if (x >= order.counts->split || order.items[x].piece != 0) return;
  TileIndex tile;
  const int place = tile_of_block<Side::queries>(p, order.items[x].tile, tiles, tile.h);
  if (!locate_tile<Side::queries>(p, place, kC.tile_m, tile)) return;
  const Sequence sequence = sequence_of(p, tile.b);
  const int pieces = order.items[x].pieces;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  for (int row = static_cast<int>(threadIdx.x / kWarpSize); row < kC.tile_m;
       row += kMergeThreads / kWarpSize) {
    const int i = tile.begin + row;
    if (i >= sequence.q_rows) return;
    const float* const o = partial_of<kC>(order, x) + row * kC.head_dim_v;
    const float* const lse = partial_of<kC>(order, x) + kC.tile_m * kC.head_dim_v + row;
    const auto lse_of = [&](int piece) { return lse[piece * kStride]; };
    float highest = minus_infinity();
    for (int piece = 0; piece < pieces; ++piece) highest = fmaxf(highest, lse_of(piece));
    float sum = 0;
    for (int piece = 0; piece < pieces; ++piece) sum += relative_weight(lse_of(piece), highest);
    if (p.lse.data != nullptr && lane == 0) {
      *scalar_of(p.lse, tile.b, tile.h, sequence.q_begin + i) =
          sum > 0 ? highest + logf(sum) : minus_infinity();
    }
    auto* const to = row_of<T>(p.o, tile.b, tile.h, sequence.q_begin + i);
    for (int d = lane; d < p.head_dim_v; d += kWarpSize) {
      float total = 0;
      for (int piece = 0; piece < pieces; ++piece) {
        total += relative_weight(lse_of(piece), highest) * o[piece * kStride + d];
      }
      to[d] = from_float<T>(sum > 0 ? total / sum : 0.0f);
    }
  }
}

template <ForwardConfig C>
Status enqueue_forward(const Parameters& p, const TileOrder& order, const Tiles& tiles,
                       cudaStream_t stream) {
  const bool in_order = order.items != nullptr;
  Status status = launch("cuda_sm80 forward", forward<Constant<C>>,
                         in_order ? tiles.most_items() : tiles.count, ForwardTraits<C>::kThreads,
                         C.shared_bytes(), stream, p, order, static_cast<int>(tiles.per_head));
  if (!status.ok() || !in_order) return status;
  return launch("cuda_sm80 forward_merge", forward_merge<Constant<C>>, tiles.most_split(),
                kMergeThreads, 0, stream, p, order, static_cast<int>(tiles.per_head));
}

template <ForwardConfig C>
constexpr ForwardVariant forward_variant() {
  return {C, enqueue_forward<C>};
}

}  // namespace tessera::cuda::sm80
