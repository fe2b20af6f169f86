// From products to weights and score gradients, in registers, for one warp's part of a tile.
//
// Scores lie transposed: accumulator s[kR][kC] has keys as rows and queries as columns, so that
// rounded to 16 bits it is the operand A of d_v += pᵀ · d_o and d_k += d_sᵀ · q.
//   p    = 2^(log2e · score − log2e · lse)
//   d_s  = p · (z · d_p − delta) · cap'          z: dropout's factor; cap': the softcap's slope
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/score.cuh"
#include "cuda/ptx/mma.cuh"

namespace tessera::cuda::sm80 {

/// Rounded operands made of scores: z · p and d_s.
template <int kR, int kC>
struct ScoreOperands {
  std::uint32_t weights[kR][kC / 2][4];
  std::uint32_t d_s[kR][kC / 2][4];
};

/// Where a warp's accumulator element [r][c][e] lies.
struct ScorePosition {
  int key, query;  ///< Of element [0][0][0] of this thread.

  __device__ __forceinline__ int key_of(int r, int e) const { return key + 16 * r + e / 2 * 8; }
  __device__ __forceinline__ int query_of(int c, int e) const { return query + 8 * c + e % 2; }
};

/// The queries' scalars in shared memory, from the warp's first query on: log2e · lse and delta.
/// lse is +inf where p has to be 0: rows that do not exist or see nothing.
struct QueryScalars {
  const float* lse;
  const float* delta;
};

/// Goes through squares of 16 × 16 elements: `prepare(r, c)` gives what the elements of the one at
/// [r][c], [r][c + 1] share, `element(shared, r, c, e, lse, delta)` gives {z · p, d_s} of one.
template <typename T, int kR, int kC, typename Prepare, typename Element>
__device__ __forceinline__ void make_operands(ScoreOperands<kR, kC>& out,
                                              const QueryScalars& scalars, Prepare prepare,
                                              Element element) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int square = 0; square < kC / 2; ++square) {
    float2 lse[2], delta[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int query = 16 * square + 8 * n + 2 * t;
      lse[n] = *reinterpret_cast<const float2*>(scalars.lse + query);
      delta[n] = *reinterpret_cast<const float2*>(scalars.delta + query);
    }
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const auto shared = prepare(r, 2 * square);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int c = 2 * square + n;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 left = element(shared, r, c, 2 * half, lse[n].x, delta[n].x);
          const float2 right = element(shared, r, c, 2 * half + 1, lse[n].y, delta[n].y);
          out.weights[r][square][2 * n + half] = ptx::pack<T>(left.x, right.x);
          out.d_s[r][square][2 * n + half] = ptx::pack<T>(left.y, right.y);
        }
      }
    }
  }
}

struct Nothing {};

/// Every element attends and its score is scale · qk.
template <typename T, int kR, int kC>
__device__ __forceinline__ void differentiate_all(const Parameters& p, const float (&s)[kR][kC][4],
                                                  const float (&d_p)[kR][kC][4],
                                                  const QueryScalars& scalars,
                                                  ScoreOperands<kR, kC>& out) {
  const float factor = p.scale * kLog2e;
  const auto prepare = [](int, int) { return Nothing{}; };
  make_operands<T>(out, scalars, prepare,
                   [&](Nothing, int r, int c, int e, float lse, float delta) {
                     const float weight = ptx::exp2(fmaf(s[r][c][e], factor, -lse));
                     return float2{weight, weight * (d_p[r][c][e] - delta)};
                   });
}

/// Some elements do not attend: causal mask, window, used lengths.
template <typename T, int kR, int kC>
__device__ __forceinline__ void differentiate_visible(const Parameters& p, const Sequence& sequence,
                                                      const ScorePosition& at,
                                                      const float (&s)[kR][kC][4],
                                                      const float (&d_p)[kR][kC][4],
                                                      const QueryScalars& scalars,
                                                      ScoreOperands<kR, kC>& out) {
  const float factor = p.scale * kLog2e;
  const auto prepare = [](int, int) { return Nothing{}; };
  make_operands<T>(out, scalars, prepare,
                   [&](Nothing, int r, int c, int e, float lse, float delta) {
                     if (!visible(p, sequence, at.query_of(c, e), at.key_of(r, e)))
                       return float2{0, 0};
                     const float weight = ptx::exp2(fmaf(s[r][c][e], factor, -lse));
                     return float2{weight, weight * (d_p[r][c][e] - delta)};
                   });
}

/// Dropout's decisions on a square of 16 × 16 elements. The four lanes that share four neighbouring
/// keys share the work: each draws the words of one of their four queries.
struct DropoutBits {
  unsigned bits[2] = {~0u, ~0u};  ///< [half]: bit 4 · column + key % 4, set if kept.

  /// Element e of the square's column tile n.
  __device__ __forceinline__ bool kept(int n, int e) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    return (bits[e / 2] >> (4 * (2 * n + e % 2) + lane / 4 % 4) & 1u) != 0;
  }
};

__device__ __forceinline__ DropoutBits draw_dropout(const Parameters& p, int b, int h,
                                                    const ScorePosition& at, int r, int c) {
  const int column = static_cast<int>(threadIdx.x) % kWarpSize / 4 % 4;
  const int i = at.query_of(c + column / 2, column % 2);
  DropoutBits out;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 words = dropout_words(p, b, h, i, at.key_of(r, 2 * half) / 4);
    unsigned kept =
        (words.x >= p.dropout_threshold ? 1u : 0u) | (words.y >= p.dropout_threshold ? 2u : 0u) |
        (words.z >= p.dropout_threshold ? 4u : 0u) | (words.w >= p.dropout_threshold ? 8u : 0u);
    kept <<= 4 * column;
    kept |= __shfl_xor_sync(~0u, kept, 4);
    out.bits[half] = kept | __shfl_xor_sync(~0u, kept, 8);
  }
  return out;
}

/// What the elements of a square share when any feature may be on.
struct SquareFeatures {
  MaskGranule granule;
  DropoutBits dropout;
};

/// Everything that attention.hpp lists, element by element. `block_full`: the block mask leaves
/// every element.
template <typename T, int kR, int kC>
__device__ __forceinline__ void differentiate_any(
    const Parameters& p, const Sequence& sequence, int b, int h, bool block_full,
    const ScorePosition& at, const float (&s)[kR][kC][4], const float (&d_p)[kR][kC][4],
    const QueryScalars& scalars, ScoreOperands<kR, kC>& out) {
  const HeadScores<T> scores(p, sequence, b, h);
  const auto prepare = [&](int r, int c) {
    SquareFeatures square{{true}, {}};
    if (!block_full) square.granule = mask_granule(p, b, h, at.query_of(c, 0), at.key_of(r, 0));
    if (p.dropout_threshold != 0) square.dropout = draw_dropout(p, b, h, at, r, c);
    return square;
  };
  make_operands<T>(
      out, scalars, prepare,
      [&](const SquareFeatures& square, int r, int c, int e, float lse, float delta) {
        const int i = at.query_of(c, e), j = at.key_of(r, e);
        if (!scores.attends(i, j) || !square.granule.allows(i, j)) return float2{0, 0};
        const Score score = scores.score(s[r][c][e], i, j);
        const float weight = ptx::exp2(fmaf(score.s, kLog2e, -lse));
        const float z = square.dropout.kept(c % 2, e) ? p.keep_scale : 0.0f;
        return float2{z * weight, weight * (z * d_p[r][c][e] - delta) * score.cap_slope};
      });
}

}  // namespace tessera::cuda::sm80
