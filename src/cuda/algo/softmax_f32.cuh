// Online softmax whose weights stay f32, as softmax.cuh otherwise: a reference near the running
// maximum, raised only when a weight grows large.
//
// The reference is kept in the units of the scores and subtracted before anything is multiplied:
// the largest score of a row that has just been raised has weight 1, not 2^(a rounding), so a row
// with one key returns that key's value and score bit for bit.
#pragma once

#include "cuda/algo/score.cuh"
#include "cuda/ptx/mma.cuh"

namespace tessera::cuda {

template <int kRowTiles>
class OnlineSoftmaxF32 {
 public:
  /// Log2 of what a weight may reach.
  static constexpr float kTrustLog2 = 8.0f;
  /// The reference of a row that has no score yet: −inf minus it is −inf.
  static constexpr float kUntouched = -3.402823466e38f;

  /// unit: what scores are multiplied by to be natural exponents; above 0.
  __device__ explicit OnlineSoftmaxF32(float unit)
      : unit_(unit), factor_(unit * kLog2e), trust_(kTrustLog2 / factor_) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        m_[r][half] = kUntouched;
        l_[r][half] = 0;
      }
    }
  }

  /// Turns scores s [16 · kRowTiles × 8 · kColumnTiles] of a warp into weights and takes them into
  /// the row sums. Calls rescale(r, half, by) for every row whose accumulator has to be multiplied
  /// by `by` before it.
  template <int kColumnTiles, typename Rescale>
  __device__ __forceinline__ void weigh(float (&s)[kRowTiles][kColumnTiles][4], Rescale rescale) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float top[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[half] = minus_infinity();
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          top[half] = fmaxf(top[half], fmaxf(s[r][n][2 * half], s[r][n][2 * half + 1]));
        }
      }
      const bool trusted = top[0] <= m_[r][0] + trust_ && top[1] <= m_[r][1] + trust_;
      if (!__all_sync(~0u, trusted)) raise(r, top, rescale);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = 0;  // of the tile first: fewer roundings at the magnitude of the whole sum
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          float& low = s[r][n][2 * half];
          float& high = s[r][n][2 * half + 1];
          low = ptx::exp2((low - m_[r][half]) * factor_);
          high = ptx::exp2((high - m_[r][half]) * factor_);
          sum += low + high;
        }
        l_[r][half] += sum;
      }
    }
  }

  /// Of a row when all tiles are done.
  struct Result {
    float scale;  ///< What the accumulator is multiplied by; 0 in a row without scores.
    float lse;    ///< Natural logarithm; −inf in a row without scores.
  };

  /// `sink` (natural units) is one more score, without a value; −inf: none. All lanes call it.
  __device__ __forceinline__ Result finish(int r, int half, float sink) const {
    float l = l_[r][half];
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    // Rounded as the backward pass rounds scores: the difference of the two is what counts there.
    float m = l > 0 ? __fmul_rn(m_[r][half], unit_) : minus_infinity();
    float by = 1;
    if (sink != minus_infinity()) {
      const float higher = fmaxf(m, sink);
      by = ptx::exp2((m - higher) * kLog2e);
      l = l * by + ptx::exp2((sink - higher) * kLog2e);
      m = higher;
    }
    if (!(l > 0)) return {0, minus_infinity()};
    return {by / l, __fadd_rn(m, logf(l))};
  }

 private:
  /// Raises the references of row tile r to their maxima; `top`: this thread's.
  template <typename Rescale>
  __device__ __forceinline__ void raise(int r, const float (&top)[2], Rescale rescale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = top[half];
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float m = fmaxf(m_[r][half], highest);
      const float by = ptx::exp2((m_[r][half] - m) * factor_);
      m_[r][half] = m;
      l_[r][half] *= by;
      rescale(r, half, by);
    }
  }

  float unit_, factor_;
  float trust_;  ///< Scores so far above the reference have weight 2^kTrustLog2.
  float m_[kRowTiles][2];
  float l_[kRowTiles][2];  ///< This thread's columns only, until finish.
};

}  // namespace tessera::cuda
