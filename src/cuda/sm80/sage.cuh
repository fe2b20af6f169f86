// Quantised forward attention on mma.sync (SageAttention2, Zhang et al. 2024), on Ampere, Ada and
// every later chip: Q and K in 8-bit or 4-bit integers, P and V in E4M3 or in 16 bits.
//
// One block computes one tile of one query head's rows, 16 for each warp:
//
//   K [64 × D] s8 or s4 · V: Vᵀ [Dv × 64] e4m3, or V [64 × Dv] in 16 bits · scale and offset of
//   each key, in shared memory, two stages of each each warp: Q, S [16 × 64] s32 → P e4m3 or
//   16-bit, O [16 × Dv] f32, in registers throughout
//
//   Q from global memory straight into fragments
//   as in forward.cuh, for each key tile j that the rows see:
//     S = Q K_jᵀ → scales, offsets, features → mask → P = 2^(S − M)
//     row sums += P 1, O += P V_j
//   O / row sums · scales of V → o
//
// The quantise kernels (quant/) have put the operands into the workspace, padded with zeros to
// whole tiles, so copies need no bounds but those of channels, and what must not be read has been
// left out there. Keys of Vᵀ lie in the order in which a thread has its scores, so P goes from
// accumulators to operand as it is.
//
// A thread's 16 scores of a row have one scale of the row and one of the key tile, unless every
// token has its own: these join the softmax's scale, and scores stay integers (as floats) until
// they are exponents. Everything else, also masks, has scores as exponents of 2 first.
//
// Row sums are the rounded weights' product with a column of ones, which is a constant in a
// register. E4M3 products of a key tile start from zero and are added to O in f32, since the tensor
// cores of Ada and Hopper keep 13 bits of their sums; 16 channels at a time, so that this takes
// eight registers. So do 16-bit ones where o is f32: their sums, too, are cut off, not rounded.
//
// What a chip does not multiply is another chip's instruction in ptx/mma_8bit.cuh: the kernel is
// the same.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/config.hpp"
#include "cuda/algo/quantised_softmax.cuh"
#include "cuda/algo/score_tile.cuh"
#include "cuda/algo/sequence.cuh"
#include "cuda/algo/tile_order.cuh"
#include "cuda/algo/uniform.cuh"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/mma_8bit.cuh"
#include "cuda/ptx/opaque.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/shared_float.cuh"
#include "cuda/quant/padded.cuh"
#include "cuda/sm80/key_tiles.cuh"
#include "cuda/sm80/sage.hpp"
#include "cuda/sm80/sage_values.cuh"
#include "cuda/tile/products.cuh"
#include "cuda/tile/shared_tile.cuh"
#include "cuda/tile/store_rows.cuh"

namespace tessera::cuda::sm80 {

/// The work of one block on one tile of rows.
template <SageConfig C>
class SageTile {
  static constexpr int kThreads = C.warps * kWarpSize;
  static constexpr int kTiles = C.tile_n / 8;
  static constexpr int kOutTiles = C.head_dim / 8;
  static constexpr int kSteps = (C.four_bits ? C.head_dim / 2 : C.head_dim) / 32;  // of 32 bytes
  static constexpr bool kHalf = C.half();
  using Rules = ScoreTile<EitherHalf, 1, kTiles>;
  using KTile = SharedTile<Pair, C.tile_n, C.key_bytes() / 2>;
  using Values = SageValues<C.values, C.head_dim>;
  using VTile = typename Values::Tile;
  using Weights = typename Values::Weights;

 public:
  __device__ SageTile(const Parameters& p, const QuantisedOperands& x, DType out,
                      const TileIndex& tile, std::uint32_t shared)
      : p_(p),
        x_(x),
        out_(out),
        tile_{uniform(tile.b), uniform(tile.h), uniform(tile.begin)},
        sequence_(uniform(sequence_of(p, tile.b))),
        rows_(uniform(Range{tile_.begin, min(tile_.begin + C.tile_m, sequence_.q_len)})),
        shared_(shared),
        warp_row_(uniform(static_cast<int>(threadIdx.x / kWarpSize)) * 16),
        rules_(p, sequence_, tile_.b, tile_.h, tile_.begin),
        scored_(Rules::needed(p)) {}

  __device__ void run() {
    Range keys{0, 0};
    if (!rows_.empty()) keys = uniform(visible_keys(p_, sequence_, rows_.begin, rows_.end));
    if (!keys.empty()) read_queries();
    BlockWalk<Side::queries, C.tile_n> walk(p_, tile_.b, tile_.h, rows_, keys);
    for_each_key_tile<C.tile_n, C.stages, 16, true>(
        p_, sequence_, rows_, warp_row_, walk,
        [this](const Visit& visit, int stage) { load(visit.begin, stage); }, [] {},
        [this](int begin, bool positions, bool blocks, int stage) {
          attend(begin, positions, blocks, stage);
        });
    finish();
  }

 private:
  using Scores = typename Rules::Scores;

  /// Planes of the workspace.
  __device__ __forceinline__ std::int64_t query_plane() const {
    return (p_.varlen ? 0 : tile_.b) * std::int64_t{p_.heads_q} + tile_.h;
  }
  __device__ __forceinline__ std::int64_t key_plane() const {
    return (p_.varlen ? 0 : tile_.b) * std::int64_t{p_.heads_kv} + tile_.h / p_.group;
  }
  /// Where the tile's queries and the sequence's keys begin in them.
  __device__ __forceinline__ int query_begin() const {
    return (p_.varlen ? padded_begin(sequence_.q_begin, tile_.b) : 0) + tile_.begin;
  }
  __device__ __forceinline__ int key_begin() const {
    return p_.varlen ? padded_begin(sequence_.kv_begin, tile_.b) : 0;
  }
  /// The thread's first query among all rows of q; the second is eight further.
  __device__ __forceinline__ std::int64_t first_query(int lane) const {
    return query_plane() * x_.rows_q + query_begin() + warp_row_ + lane / 4;
  }

  /// Q's fragments, and the scales of the thread's two rows.
  __device__ __forceinline__ void read_queries() {
    const int lane = lane_id();
    const std::int64_t row = first_query(lane);
    const std::int8_t* from = x_.q + row * x_.pitch + lane % 4 * 4;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int at = 0; at < 4; ++at) {
        const int byte = 32 * k + at / 2 * 16;
        q_[k][at] = byte < x_.pitch ? *reinterpret_cast<const std::uint32_t*>(
                                          from + std::int64_t{at % 2 * 8} * x_.pitch + byte)
                                    : 0;
      }
    }
    const float unit = (C.four_bits ? ptx::kS4Unit : 1) * exponent_unit();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t at = row + 8 * half;
      q_factor_[half] = unit * x_.q_scales[x_.token_scales ? at : at / kQueryWarp * 8 + at % 8];
    }
  }

  /// What q · k is multiplied by as soon as it is there: what makes it an exponent of 2, unless
  /// score rules come first.
  __device__ __forceinline__ float exponent_unit() const {
    return scored_ ? 1.0f : p_.scale * kLog2e;
  }

  /// Starts to copy the key tile from `begin` on.
  __device__ __forceinline__ void load(int begin, int stage) {
    const int key = key_begin() + begin;
    const std::int64_t row = key_plane() * x_.rows_kv + key;
    const int thread = static_cast<int>(thread_anew());
    copy_vectors<kThreads>(k_stage(stage), reinterpret_cast<const Pair*>(x_.k + row * x_.pitch),
                           x_.pitch / 2, 0, C.tile_n, x_.pitch / 2, ~0u, thread);
    if constexpr (kHalf) {
      using T = typename VTile::Element;
      copy_vectors<kThreads>(v_stage(stage), static_cast<const T*>(x_.v_half) + row * x_.v_pitch,
                             x_.v_pitch, 0, C.tile_n, x_.v_pitch, ~0u, thread);
    } else {
      const std::uint8_t* from = x_.v + key_plane() * p_.head_dim_v * x_.rows_kv + key;
      copy_vectors<kThreads>(v_stage(stage), reinterpret_cast<const Pair*>(from), x_.rows_kv / 2, 0,
                             p_.head_dim_v, C.tile_n / 2, ~0u, thread);
    }
    // Vectors of four scales, then of four offsets.
    constexpr int kVectors = C.tile_n / 4;
    const int vector = thread % kVectors;
    const bool offset = thread / kVectors == 1;
    const float* scales = x_.k_scales + (x_.token_scales ? row : row / 16);
    if (thread < kVectors && (x_.token_scales || vector == 0)) {
      ptx::cp_async_16(scales_stage(stage) + 16 * vector, scales + 4 * vector, 16);
    }
    if (offset && x_.key_offsets != nullptr) {
      const int block = min(query_begin() / kTileTokens, x_.offset_blocks - 1);
      const float* offsets =
          x_.key_offsets + (query_plane() * x_.offset_blocks + block) * x_.rows_kv + key;
      ptx::cp_async_16(offsets_stage(stage) + 16 * vector, offsets + 4 * vector, 16);
    }
    ptx::cp_async_commit();
  }

  /// The key tile from `begin` on. Some elements do not count because of their `positions`, or of
  /// the block mask (`blocks`).
  __device__ __forceinline__ void attend(int begin, bool positions, bool blocks, int stage) {
    Scores s;
    multiply_keys(s, k_stage(stage));
    float factor = scale_scores(s, begin, stage);
    if (positions || blocks) {
      // Not −inf times a scale that is NaN or zero.
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int at = 0; at < 4; ++at) s[0][n][at] *= factor;
      }
      factor = 1;
      if (blocks) rules_.mask_blocks(s, begin);
      if (positions) rules_.mask_positions(s, begin);
    }
    float top[2], by[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = factor * QuantisedSoftmax::top(s[0], 0, kTiles, half);
    }
    if (softmax_.prepare(top, by)) rescale(by);
    Weights weights;
    exponentiate(weights, s, factor);
    Values::add_row_sums(sum_, weights);
    if (p_.dropout_threshold != 0) {
      drop(weights, begin);
      if (x_.v_means != nullptr) Values::add_row_sums(kept_, weights);
    }
    multiply_values(weights, v_stage(stage));
  }

  /// S [16 × 64] = Q Kᵀ, integers as floats.
  __device__ __forceinline__ void multiply_keys(Scores& s, const KTile& k_tile) const {
    const int lane = lane_id_anew();
    std::int32_t products[kTiles][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        std::uint32_t b[4];
        read_b_transposed(b, k_tile, 8 * n, k, lane);
        if constexpr (C.four_bits) {
          ptx::mma_m16n8k64_s4(products[n], q_[k], b[0], b[1]);
          ptx::mma_m16n8k64_s4(products[n + 1], q_[k], b[2], b[3]);
        } else {
          ptx::mma_m16n8k32_s8(products[n], q_[k], b[0], b[1]);
          ptx::mma_m16n8k32_s8(products[n + 1], q_[k], b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int at = 0; at < 4; ++at) s[0][n][at] = static_cast<float>(products[n][at]);
    }
  }

  /// From integers to scores; returns what they have to be multiplied by to be exponents of 2.
  __device__ __forceinline__ float scale_scores(Scores& s, int begin, int stage) const {
    const int t = lane_id_anew() % 4;
    const std::uint32_t scales = scales_stage(stage);
    if (!scored_ && !x_.token_scales && x_.key_offsets == nullptr) {
      return q_factor_[0] * ptx::load_shared_float(scales + 4 * t);
    }
    // What smoothing has taken from q · k of the thread's rows counts where scores are capped.
    float row_offset[2] = {0, 0};
    if (p_.softcap > 0 && x_.row_offsets != nullptr) {
      const std::int64_t row = first_query(lane_id_anew());
      row_offset[0] = x_.row_offsets[row];
      row_offset[1] = x_.row_offsets[row + 8];
    }
    const float unit = exponent_unit();
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float2 key, offset = {0, 0};
      if (x_.token_scales) {
        key = ptx::load_shared_pair(scales + (8 * n + 2 * t) * 4);
      } else {
        key.x = key.y = ptx::load_shared_float(scales + 4 * t);
      }
      if (x_.key_offsets != nullptr) {
        offset = ptx::load_shared_pair(offsets_stage(stage) + (8 * n + 2 * t) * 4);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& x = s[0][n][2 * half];
        float& y = s[0][n][2 * half + 1];
        x = fmaf(x, q_factor_[half] * key.x, unit * (offset.x + row_offset[half]));
        y = fmaf(y, q_factor_[half] * key.y, unit * (offset.y + row_offset[half]));
      }
    }
    if (scored_) rules_.score(s, begin);
    return 1;
  }

  __device__ __forceinline__ void rescale(const float (&by)[2]) {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int at = 0; at < 4; ++at) o_[0][n][at] *= by[at / 2];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum_[half] *= by[half];
      kept_[half] *= by[half];
      exact_[half] *= by[half];
    }
  }

  /// Rounded weights, and their sums before they are rounded, which the lse is made of.
  __device__ __forceinline__ void exponentiate(Weights& weights, const Scores& s, float factor) {
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float p[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[e] = softmax_.weight(s[0][n + e / 2][2 * half + e % 2], factor, half);
          exact_[half] += p[e];
        }
        Values::set(weights, n, half, p);
      }
    }
  }

  __device__ __forceinline__ void drop(Weights& weights, int begin) const {
    if constexpr (kHalf) {
      rules_.drop(weights.rows, begin);
    } else {
      rules_.for_each_drawn(begin, [&](int, int n, int half, unsigned low, unsigned high) {
        weights.rows[n / 4].keep(half + n % 4 / 2 * 2, n % 2, low, high);
      });
    }
  }

  /// O [16 × Dv] += P V. A result in f32 is owed sums that are rounded; products' are cut off.
  __device__ __forceinline__ void multiply_values(const Weights& weights, const VTile& v_tile) {
    if constexpr (C.values == ValueFormat::e4m3) {
      add_apart(weights, v_tile);
    } else {
      if (C.values == ValueFormat::bf16 && out_ == DType::f32) {
        add_apart(weights, v_tile);
      } else {
        multiply_registers<typename VTile::Element>(o_, weights.rows, v_tile, 0, 0, lane_id_anew());
      }
    }
  }

  /// The same, the key tile's product on its own.
  __device__ __forceinline__ void add_apart(const Weights& weights, const VTile& v_tile) {
    const int lane = lane_id_anew();
#pragma unroll
    for (int n = 0; n < kOutTiles; n += 2) {
      float part[1][2][4] = {};
      Values::multiply_channels(part, weights, v_tile, n, lane);
#pragma unroll
      for (int at = 0; at < 4; ++at) {
        o_[0][n][at] += part[0][0][at];
        o_[0][n + 1][at] += part[0][1][at];
      }
    }
  }

  /// Divides by the row sums and stores o and lse of every row that exists.
  __device__ __forceinline__ void finish() const {
    const int lane = lane_id_anew();
    const bool shifted = x_.row_offsets != nullptr && !(p_.softcap > 0);
    const std::int64_t channels =
        (std::int64_t{tile_.b} * p_.heads_kv + tile_.h / p_.group) * p_.head_dim_v;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = tile_.begin + warp_row_ + 8 * half + lane / 4;
      const bool used = i < rows_.end, exists = i < sequence_.q_rows;
      // What smoothing K has taken from the row's scores.
      const float taken =
          shifted && used ? p_.scale * x_.row_offsets[first_query(lane) + 8 * half] : 0.0f;
      const float sink = p_.sink != nullptr ? p_.sink[tile_.h] : minus_infinity();
      auto [scale, weight, lse] = softmax_.finish(half, sum_[half], exact_[half], sink - taken);
      lse = sum_[half] == 0 ? sink : lse + taken;
      if (!used) lse = minus_infinity();
      if (p_.dropout_threshold != 0) weight *= p_.keep_scale * kept_[half] / sum_[half];
      scale *= p_.keep_scale;
      const int token = sequence_.q_begin + i;
      if (p_.lse.data != nullptr && lane % 4 == 0 && exists) {
        *scalar_of(p_.lse, tile_.b, tile_.h, token) = lse;
      }
      float row[kOutTiles][2];
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int d = 8 * n + lane % 4 * 2 + e;
          const bool stored = used && scale != 0 && d < p_.head_dim_v;
          const float of_channel = kHalf || !stored ? 1.0f : x_.v_scales[channels + d];
          row[n][e] = stored ? o_[0][n][2 * half + e] * (scale * of_channel) : 0.0f;
          if (stored && x_.v_means != nullptr) row[n][e] += weight * x_.v_means[channels + d];
        }
      }
      store(row, exists, token);
    }
  }

  __device__ __forceinline__ void store(const float (&row)[kOutTiles][2], bool exists,
                                        int token) const {
    const auto to = [&]<typename T>() {
      return exists ? row_of<T>(p_.o, tile_.b, tile_.h, token) : nullptr;
    };
    if (out_ == DType::f16) {
      store_row_of(to.template operator()<__half>(), row, p_.head_dim_v, p_.o.vectors);
    } else if (out_ == DType::bf16) {
      store_row_of(to.template operator()<__nv_bfloat16>(), row, p_.head_dim_v, p_.o.vectors);
    } else {
      store_row_f32(to.template operator()<float>(), row, p_.head_dim_v);
    }
  }

  __device__ __forceinline__ KTile k_stage(int stage) const {
    return {shared_ + stage * KTile::kBytes};
  }
  __device__ __forceinline__ VTile v_stage(int stage) const {
    return {shared_ + C.stages * KTile::kBytes + stage * VTile::kBytes};
  }
  __device__ __forceinline__ std::uint32_t scales_stage(int stage) const {
    return shared_ + C.stages * (KTile::kBytes + VTile::kBytes) + stage * C.scale_bytes;
  }
  __device__ __forceinline__ std::uint32_t offsets_stage(int stage) const {
    return scales_stage(stage) + C.scale_bytes / 2;
  }

  const Parameters& p_;
  const QuantisedOperands& x_;
  const DType out_;
  const TileIndex tile_;
  const Sequence sequence_;
  const Range rows_;  ///< Used rows of the tile.
  const std::uint32_t shared_;
  const int warp_row_;  ///< The warp's first row within the tile.
  const Rules rules_;
  const bool scored_;  ///< Scores take more than a scale.
  QuantisedSoftmax softmax_;
  std::uint32_t q_[kSteps][4];
  float q_factor_[2];  ///< Scales of the rows, times exponent_unit().
  float o_[1][kOutTiles][4] = {};
  float sum_[2] = {0, 0};    ///< Row sums of P,
  float kept_[2] = {0, 0};   ///< of what dropout leaves of it,
  float exact_[2] = {0, 0};  ///< and this thread's part of those before P was rounded.
};

/// As in forward.cuh: earlier chips have room for two blocks only, and may take more registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr int kMostSageBlocks = 2;
#else
inline constexpr int kMostSageBlocks = 4;
#endif

template <typename Config>
__global__ void __launch_bounds__(SageConfig::warps* kWarpSize,
                                  std::min(Config::value.blocks, kMostSageBlocks))
    sage_forward(const __grid_constant__ Parameters p, const __grid_constant__ QuantisedOperands x,
                 DType out, int tiles) {
  constexpr SageConfig C = Config::value;
  extern __shared__ __align__(128) std::byte shared[];
  TileIndex tile;
  const int place = tile_of_block<Side::queries>(p, static_cast<int>(blockIdx.x), tiles, tile.h);
  if (!locate_tile<Side::queries>(p, place, C.tile_m, tile)) return;
  SageTile<C>(p, x, out, tile, ptx::shared_address(shared)).run();
}

template <SageConfig C>
constexpr SageVariant sage_variant() {
  return {C, [](const Parameters& p, const QuantisedOperands& x, DType out, const Tiles& tiles,
                cudaStream_t stream) {
            return launch("cuda_sage_sm80 forward", sage_forward<Constant<C>>, tiles.count,
                          C.warps * kWarpSize, C.shared_bytes(), stream, p, x, out,
                          static_cast<int>(tiles.per_head));
          }};
}

}  // namespace tessera::cuda::sm80
