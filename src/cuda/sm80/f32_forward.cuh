// Forward attention in f32 on mma.sync: the schedule of forward.cuh on numbers that are sums of
// three bf16 terms (tile/split.cuh), six products for one.
//
// One block computes one tile of one query head's rows:
//
//   K, V [tile_n × D] as terms, shared, `stages` of each; split beforehand (algo/split_rows.hpp)
//   each warp: Q [rows × D] as terms in registers, or above head dim 128 as f32 in shared memory;
//              S [rows × tile_n] f32, P = f32 weights in S's place, O [rows × Dv] f32, in registers
//              throughout
//
//   load K₀, V₀; Q from global memory, split
//   for each key tile j that the rows see:
//     wait for K_j, V_j; barrier; start to load K_j+1, V_j+1 into the stage that j − 1 has left
//     S = Q K_jᵀ → features → mask → P = e^(S − m), row sums
//     O += P V_j, P split 16 keys at a time
//   O / row sums → global, 8 bytes at a time
//
// Six products for each pair of fragments make products the bottleneck even with one row tile a
// warp; what else is done for a score (an f32 addition for each 16 multiply-adds, splitting P, the
// softmax) fits beside them. One barrier a tile is enough, as in forward.cuh.
//
// Above head dim 256 two warps share 16 rows (`parts`): each multiplies half of D, adds the other's
// half of S, and has half of Dv; the weights are computed by both. Shared memory holds one stage:
//     wait for K_j; barrier; half of S; barrier; halves of S exchanged in K's place; weights
//     wait for V_j; barrier; start to load K_j+1; O += P V_j; barrier; start to load V_j+1
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/config.hpp"
#include "cuda/algo/score_tile.cuh"
#include "cuda/algo/softmax_f32.cuh"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/opaque.cuh"
#include "cuda/sm80/f32_forward_variants.hpp"
#include "cuda/sm80/forward.cuh"
#include "cuda/tile/f32_tile.cuh"

namespace tessera::cuda::sm80 {

/// The work of one block on one tile of rows.
template <F32ForwardConfig C>
class F32ForwardTile {
  static constexpr int kThreads = C.warps * kWarpSize;
  static constexpr int kRowTiles = C.tile_m / (C.warps / C.parts) / 16;
  static constexpr int kScoreTiles = C.tile_n / 8;
  static constexpr int kDims = C.head_dim / C.parts;  ///< Of a warp.
  static constexpr int kOutDims = C.head_dim_v / C.parts;
  static constexpr int kOutTiles = kOutDims / 8;
  static constexpr int kSteps = kDims / 16;
  /// Pairs of column tiles side by side; two where one row tile alone would leave products waiting.
  static constexpr int kWide = kRowTiles == 1 ? 2 : 1;
  static constexpr int kScoresWide = C.tile_n % (16 * kWide) == 0 ? kWide : 1;
  static_assert(C.tile_m * C.parts == kRowTiles * 16 * C.warps && C.tile_n % 16 == 0);
  static_assert(C.parts == 1 ? C.stages == 2 : C.parts == 2 && C.stages == 1 && !C.kept_q);

  using QTile = F32Tile<C.tile_m, C.head_dim>;
  using KTile = SplitTile<C.tile_n, C.head_dim>;
  using VTile = SplitTile<C.tile_n, C.head_dim_v>;
  using Rules = ScoreTile<float, kRowTiles, kScoreTiles, C.parts>;

 public:
  __device__ F32ForwardTile(const Parameters& p, const TileIndex& tile, std::uint32_t shared)
      : p_(p),
        tile_{uniform(tile.b), uniform(tile.h), uniform(tile.begin)},
        sequence_(uniform(sequence_of(p, tile.b))),
        rows_(uniform(Range{tile_.begin, min(tile_.begin + C.tile_m, sequence_.q_len)})),
        k_{shared},
        v_{shared + C.stages * KTile::kBytes},
        q_{v_.base + C.stages * VTile::kBytes},
        h_kv_(uniform(tile.h / p.group)),
        warp_row_(uniform(static_cast<int>(threadIdx.x / kWarpSize)) / C.parts * 16 * kRowTiles),
        part_(uniform(static_cast<int>(threadIdx.x / kWarpSize)) % C.parts),
        rules_(p, sequence_, tile_.b, tile_.h, tile_.begin),
        scored_(C.extras && Rules::needed(p)),
        softmax_(scored_ ? 1.0f : p.scale) {}

  __device__ void run() {
    Range keys{0, 0};
    if (!rows_.empty()) keys = uniform(visible_keys(p_, sequence_, rows_.begin, rows_.end));
    BlockWalk<Side::queries, C.tile_n> walk(p_, tile_.b, tile_.h, rows_, keys);
    // A warp leaves out tiles that its own rows do not see, and tests those that they see in part.
    const int warp_begin = rows_.begin + warp_row_;
    const int warp_end = min(warp_begin + 16 * kRowTiles, rows_.end);
    Range seen{0, 0}, whole{0, 0};
    if (warp_begin < warp_end) {
      seen = visible_keys(p_, sequence_, warp_begin, warp_end);
      whole = common_keys(p_, sequence_, warp_begin, warp_end);
    }
    seen = uniform(seen);
    whole = uniform(whole);
    if (!keys.empty()) load_q();
    Visit now, next;
    const auto some = [&] { return now.begin + C.tile_n > seen.begin && now.begin < seen.end; };
    const auto positions = [&] {
      return now.begin < whole.begin || now.begin + C.tile_n > whole.end;
    };
    bool more = true;
    for (int step = -1; more; ++step) {
      now = next;
      more = walk.next(next);
      next = uniform(next);
      typename Rules::Scores s;
      if constexpr (C.parts == 1) {
        if (step >= 0) arrive<0>();
        if (more) load_k(next, (step + 1) % C.stages);
        if (more) load_v(next, (step + 1) % C.stages);
        if (step < 0 || !some()) continue;
        multiply_qk(s, k_stage(step % C.stages));
        weigh(s, now, positions());
        multiply_pv(s, v_stage(step % C.stages));
      } else {
        if (step >= 0) {
          arrive<1>();  // K
          if (some()) multiply_qk(s, k_);
          __syncthreads();  // the parts of S take K's place
          if (some()) {
            add_parts(s);
            weigh(s, now, positions());
          }
          arrive<0>();  // V
        }
        if (more) load_k(next, 0);
        if (step >= 0) {
          if (some()) multiply_pv(s, v_);
          __syncthreads();
        }
        if (more) load_v(next, 0);
      }
    }
    finish();
  }

 private:
  __device__ __forceinline__ void load_k(const Visit& visit, int stage) {
    load_terms(k_stage(stage), p_.k, p_.head_dim, visit);
    ptx::cp_async_commit();
  }
  __device__ __forceinline__ void load_v(const Visit& visit, int stage) {
    load_terms(v_stage(stage), p_.v, p_.head_dim_v, visit);
    ptx::cp_async_commit();
  }

  /// All copies but the kPending that were started last are there, for all warps.
  template <int kPending>
  __device__ __forceinline__ void arrive() {
    ptx::cp_async_wait<kPending>();
    __syncthreads();
  }

  template <typename Tile>
  __device__ __forceinline__ void load_terms(const Tile& tile, const Rows& rows, int columns,
                                             const Visit& visit) {
    const auto* from = row_of<const __nv_bfloat16>(rows, tile_.b, h_kv_, sequence_.kv_begin);
#pragma unroll
    for (int t = 0; t < kTerms; ++t) {
      copy_vectors<kThreads>(tile.term(t), from + t * term_stride(rows), rows.stride_s, visit.begin,
                             sequence_.kv_len, columns, visit.listed);
    }
  }

  __device__ __forceinline__ void load_q() {
    const float* head = row_of<const float>(p_.q, tile_.b, tile_.h, sequence_.q_begin);
    if constexpr (C.kept_q) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = warp_row_ + 16 * r + e % 2 * 8 + lane_id() / 4;
            const int column = 16 * k + e / 2 * 8 + lane_id() % 4 * 2;
            const float2 pair = read_pair(head, tile_.begin + row, column);
            q_kept_[r][k].set(e, pair.x, pair.y);
          }
        }
      }
    } else {
      load_f32_tile<kThreads>(q_, head, p_.q.stride_s, p_.q.vectors, rows_.begin, rows_.end,
                              p_.head_dim);
    }
  }

  __device__ __forceinline__ float2 read_pair(const float* head, int i, int column) const {
    const float* from = head + i * p_.q.stride_s + column;
    const bool exists = i < rows_.end;
    if (p_.q.vectors && exists && column < p_.head_dim) {
      return *reinterpret_cast<const float2*>(from);
    }
    return {exists && column < p_.head_dim ? from[0] : 0.0f,
            exists && column + 1 < p_.head_dim ? from[1] : 0.0f};
  }

  /// From products to weights, for the key tile of `visit`. Some elements may not count because of
  /// their `positions`.
  __device__ __forceinline__ void weigh(typename Rules::Scores& s, const Visit& visit,
                                        bool positions) {
    if constexpr (C.extras) {
      if (scored_) rules_.score(s, visit.begin);
    }
    if (visit.full == 0) rules_.mask_blocks(s, visit.begin);
    if (positions) rules_.mask_positions(s, visit.begin);
    softmax_.weigh(s, [this](int r, int half, float by) {
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
        o_[r][n][2 * half] *= by;
        o_[r][n][2 * half + 1] *= by;
      }
    });
    if constexpr (C.extras) {
      if (p_.dropout_threshold != 0) rules_.drop(s, visit.begin);
    }
  }

  /// S [rows × tile_n] = Q [rows × D] Kᵀ [D × tile_n], of the warp's part of D.
  __device__ __forceinline__ void multiply_qk(typename Rules::Scores& s, const KTile& keys) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[r][n][e] = 0;
      }
    }
    const QTile q_part = q_.columns_from(part_ * kDims);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      SplitOperand q[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if constexpr (C.kept_q) {
          q[r] = q_kept_[r][k];
        } else {
          q[r] = read_split_a(q_part, warp_row_ + 16 * r, k);
        }
      }
      multiply_split<kScoresWide>(s, q, [&](int c) {
        return read_split_b_transposed(keys.columns_from(part_ * kDims), 16 * c, k);
      });
    }
  }

  /// Adds the other warp's part of S, by way of shared memory that nobody reads any more.
  __device__ __forceinline__ void add_parts(typename Rules::Scores& s) {
    const int warp = warp_row_ / (16 * kRowTiles) * C.parts + part_;
    const auto place = [this](int of_warp, int element) {
      return k_.base + ((of_warp * kRowTiles * kScoreTiles + element) * kWarpSize + lane_id()) * 16;
    };
#pragma unroll
    for (int x = 0; x < kRowTiles * kScoreTiles; ++x) {
      const auto& own = s[x / kScoreTiles][x % kScoreTiles];
      ptx::store_shared_16(place(warp, x), __float_as_uint(own[0]), __float_as_uint(own[1]),
                           __float_as_uint(own[2]), __float_as_uint(own[3]));
    }
    ptx::sync_group(1 + warp / C.parts, C.parts * kWarpSize);
#pragma unroll
    for (int x = 0; x < kRowTiles * kScoreTiles; ++x) {
      std::uint32_t other[4];
      ptx::load_shared_16(other, place(warp ^ 1, x));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[x / kScoreTiles][x % kScoreTiles][e] += __uint_as_float(other[e]);
      }
    }
  }

  /// O [rows × Dv] += P [rows × tile_n] V [tile_n × Dv].
  __device__ __forceinline__ void multiply_pv(const typename Rules::Scores& weights,
                                              const VTile& values) {
#pragma unroll
    for (int k = 0; k < C.tile_n / 16; ++k) {
      SplitOperand p[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) p[r] = split_operand(weights[r], k);
      multiply_split<kWide>(o_, p, [&](int c) {
        return read_split_b(values.columns_from(part_ * kOutDims), 16 * k, c);
      });
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
    const float sink = C.extras && p_.sink != nullptr ? p_.sink[tile_.h] : minus_infinity();
    float* const o = row_of<float>(p_.o, tile_.b, tile_.h, sequence.q_begin);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = tile_.begin + warp_row_ + 16 * r + 8 * half + lane / 4;
        auto [scale, lse] = softmax_.finish(r, half, sink);
        if (i >= sequence.q_rows) continue;
        const bool used = i < rows_.end;
        if (p_.lse.data != nullptr && lane % 4 == 0 && part_ == 0) {
          *scalar_of(p_.lse, tile_.b, tile_.h, sequence.q_begin + i) =
              used ? lse : minus_infinity();
        }
        if constexpr (C.extras) scale *= p_.keep_scale;
        const int column = part_ * kOutDims + lane % 4 * 2;
        float* to = o + i * p_.o.stride_s + column;
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
          store_pair(to + 8 * n, p_.o.vectors, p_.head_dim_v - column - 8 * n,
                     used ? o_[r][n][2 * half] * scale : 0.0f,
                     used ? o_[r][n][2 * half + 1] * scale : 0.0f);
        }
      }
    }
  }

  __device__ __forceinline__ KTile k_stage(int stage) const {
    return {k_.base + stage * KTile::kBytes};
  }
  __device__ __forceinline__ VTile v_stage(int stage) const {
    return {v_.base + stage * VTile::kBytes};
  }

  const Parameters& p_;
  const TileIndex tile_;
  const Sequence sequence_;
  const Range rows_;  ///< Used rows of the tile.
  const KTile k_;     ///< Stage 0.
  const VTile v_;
  const QTile q_;
  const int h_kv_;
  const int warp_row_;  ///< The warp's first row within the tile.
  const int part_;      ///< Of D and Dv that is the warp's.
  const Rules rules_;
  const bool scored_;  ///< Scores take more than a scale.
  OnlineSoftmaxF32<kRowTiles> softmax_;
  SplitOperand q_kept_[C.kept_q ? kRowTiles : 1][C.kept_q ? kSteps : 1];
  float o_[kRowTiles][kOutTiles][4] = {};
};

template <typename C>
__global__ void __launch_bounds__(C::value.warps* kWarpSize, 1)
    f32_forward(const __grid_constant__ Parameters p) {
  extern __shared__ __align__(128) std::byte shared[];
  TileIndex tile;
  if (!locate_block(p, C::value.tile_m, tile)) return;
  F32ForwardTile<C::value>(p, tile, ptx::shared_address(shared)).run();
}

template <F32ForwardConfig C>
constexpr F32ForwardVariant f32_forward_variant() {
  return {C, [](const Parameters& p, cudaStream_t stream) {
            const std::int64_t blocks = tiles_per_head(p, p.seq_q, C.tile_m) * p.heads_q;
            return launch("cuda_sm80_f32 forward", f32_forward<Constant<C>>, blocks,
                          C.warps * kWarpSize, C.shared_bytes(), stream, p);
          }};
}

}  // namespace tessera::cuda::sm80
