// What the f32 backward kernels share: from products to p and d_s, queries' scalars, and the way
// through the queries of a group.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/score_tile.cuh"
#include "cuda/sm80/backward_scores.cuh"

namespace tessera::cuda::sm80 {

/// Of a query. A row that does not exist sees nothing.
struct RowGradientScalars {
  float lse = plus_infinity();
  float delta = 0;

  /// In the form that e^(s − lse) is 0 where a row sees nothing.
  __device__ __forceinline__ RowGradientScalars hidden() const {
    return lse == minus_infinity() ? RowGradientScalars{} : *this;
  }
};

/// As they lie in memory.
__device__ __forceinline__ RowGradientScalars row_scalars(const Parameters& p, const Gradients& g,
                                                          const Sequence& sequence, int b, int h,
                                                          int i) {
  if (i >= sequence.q_len) return {};
  return {*scalar_of(p.lse, b, h, sequence.q_begin + i),
          *scalar_of(g.delta, b, h, sequence.q_begin + i)};
}

/// Keys as rows: s = q · k becomes p, 0 where dropped, and d_p = d_o · v becomes d_s. Some elements
/// may not count because of their `positions`, or of the block mask if the tile is not `full`.
template <bool kExtras, typename T, int kR, int kC>
__device__ __forceinline__ void differentiate(float (&s)[kR][kC][4], float (&d_p)[kR][kC][4],
                                              const ScorePart<T, kR, kC>& rules,
                                              const Parameters& p, bool positions, bool full) {
  unsigned kept = ~0u;
  if constexpr (kExtras) {
    kept = rules.apply_extras(s, d_p);
  } else {
    rules.subtract_delta(d_p);
  }
  if (positions) rules.hide_positions(s);
  if (!full) rules.hide_blocks(s);
  rules.finish(s, d_p, kExtras ? 1.0f : p.scale, kept);
}

/// Queries as rows: d_p becomes d_s, for the keys from j0 on. `rows` are hidden scalars.
template <bool kExtras, typename Rules, int kR, int kC>
__device__ __forceinline__ void differentiate(float (&s)[kR][kC][4], float (&d_p)[kR][kC][4],
                                              const Rules& rules, const Parameters& p,
                                              const RowGradientScalars (&rows)[kR][2], int j0,
                                              bool positions, bool full) {
  const bool scored = kExtras && Rules::needed(p);
  const float factor = scored ? 1.0f : p.scale;
  const float keep_scale = kExtras ? p.keep_scale : 1.0f;
  if constexpr (kExtras) {
    if (p.dropout_threshold != 0) rules.drop(d_p, j0);
  }
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        d_p[r][c][e] = fmaf(keep_scale, d_p[r][c][e], -rows[r][e / 2].delta);
      }
    }
  }
  if constexpr (kExtras) {
    if (p.softcap > 0) rules.multiply_by_cap_slope(d_p, s);
    if (scored) rules.score(s, j0);
  }
  if (!full) rules.mask_blocks(s, j0);
  if (positions) rules.mask_positions(s, j0);
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float score = __fmul_rn(s[r][c][e], factor);  // as the forward pass rounds it
        d_p[r][c][e] *= ptx::exp2(__fsub_rn(score, rows[r][e / 2].lse) * kLog2e);
      }
    }
  }
}

/// The query tiles that see a tile of keys, head by head.
template <int kQueries>
class GroupWalk {
  using Walk = BlockWalk<Side::keys, kQueries>;

 public:
  __device__ GroupWalk(const Parameters& p, int b, int h_kv, Range keys, Range queries)
      : p_(p),
        b_(b),
        h_end_((h_kv + 1) * p.group),
        keys_(keys),
        queries_(queries),
        h_(h_kv * p.group),
        walk_(p, b, h_, keys, queries) {}

  __device__ bool next(Visit& visit, int& h) {
    while (!walk_.next(visit)) {
      if (++h_ >= h_end_) return false;
      walk_ = Walk(p_, b_, h_, keys_, queries_);
    }
    h = h_;
    return true;
  }

 private:
  const Parameters& p_;
  const int b_, h_end_;
  const Range keys_, queries_;
  int h_;
  Walk walk_;
};

}  // namespace tessera::cuda::sm80
