// Online softmax on scores that lie in registers as mma accumulators (ptx/mma.cuh): a thread has
// kRowTiles × 2 rows, four neighbouring lanes share each of them.
//
// The weights of a tile of scores s are p = 2^(factor · s − m), where m is a *reference* of the
// row: any number near its running maximum serves, since it cancels in Σ p v / Σ p. So m is not
// raised with every new maximum but only when a weight could grow too large for the 16-bit operand
// of the second product. On ordinary scores that happens in the first tile alone; all others need
// neither an exchange between lanes nor the rescaling of the accumulator. (FlashAttention-4 skips
// the rescaling by a bound on the maximum.)
//
// With several row tiles the weights are computed first and the thread's part of their sum, which
// is needed anyway, is the test: no maximum either. With one row tile the thread's maximum is the
// test, in front of the exponentials, which then stand in one block with the second product and
// hide the latency of its operands.
#pragma once

#include "cuda/algo/score.cuh"
#include "cuda/ptx/mma.cuh"

namespace tessera::cuda {

template <typename T, int kRowTiles>
class OnlineSoftmax {
 public:
  /// What a thread's part of a tile's row sum may reach, or its largest weight: far inside f16's
  /// 65504. Sums in f32 lose nothing.
  static constexpr float kTrust = 256.0f;
  static constexpr float kTrustLog2 = 8.0f;
  /// The reference of a row that has no score yet. Finite, so that −inf − m is −inf and no
  /// masked score ever gives a NaN; so low that any score of an untouched row passes kTrust.
  static constexpr float kUntouched = -1e38f;

  /// factor: what a score is multiplied by before it is the exponent of 2; above 0.
  __device__ explicit OnlineSoftmax(float factor) : factor_(factor) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        m_[r][half] = kUntouched;
        l_[r][half] = 0;
      }
    }
  }

  /// Turns scores s [16 · kRowTiles × 8 · kColumnTiles] of a warp into weights p, the A operand of
  /// the second product, and takes them into the row sums. Calls rescale(r, half, by) for every row
  /// whose accumulator has to be multiplied by `by` before it.
  template <int kColumnTiles, typename Rescale>
  __device__ __forceinline__ void weigh(const float (&s)[kRowTiles][kColumnTiles][4],
                                        std::uint32_t (&p)[kRowTiles][kColumnTiles / 2][4],
                                        Rescale rescale) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float sum[2];
      if constexpr (kRowTiles == 1) {
        float top[2];
        maxima(s[r], top);
        if (!__all_sync(~0u, trusted(r, top))) raise(r, top, rescale);
        exponentiate(r, s[r], p[r], sum);
      } else {
        exponentiate(r, s[r], p[r], sum);
        if (!__all_sync(~0u, fmaxf(sum[0], sum[1]) <= kTrust)) {
          float top[2];
          maxima(s[r], top);
          raise(r, top, rescale);
          exponentiate(r, s[r], p[r], sum);
        }
      }
      l_[r][0] += sum[0];
      l_[r][1] += sum[1];
    }
  }

  /// The same in steps, for kernels whose accumulator and last weights are still being multiplied
  /// when the next scores are there: first prepare, then exponentiate, and when the products are
  /// done rescale by `by` if `prepare` said so, and pack.
  template <int kColumnTiles>
  __device__ __forceinline__ bool prepare(const float (&s)[kRowTiles][kColumnTiles][4],
                                          float (&by)[2]) {
    static_assert(kRowTiles == 1);
    float top[2];
    maxima(s[0], top);
    if (__all_sync(~0u, trusted(0, top))) return false;
    raise(0, top, [&by](int, int half, float factor) { by[half] = factor; });
    return true;
  }

  /// Turns scores into weights in place and takes them into the row sums.
  template <int kColumnTiles>
  __device__ __forceinline__ void exponentiate(float (&s)[kRowTiles][kColumnTiles][4]) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = s[r][n][2 * half + e];
            x = ptx::exp2(fmaf(x, factor_, -m_[r][half]));
            l_[r][half] += x;
          }
        }
      }
    }
  }

  /// Weights as the A operand of the second product.
  template <int kColumnTiles>
  __device__ __forceinline__ static void pack(const float (&s)[kRowTiles][kColumnTiles][4],
                                              std::uint32_t (&p)[kRowTiles][kColumnTiles / 2][4]) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          p[r][n / 2][n % 2 * 2 + half] = ptx::pack<T>(s[r][n][2 * half], s[r][n][2 * half + 1]);
        }
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
    float m = l > 0 ? m_[r][half] : minus_infinity();
    float by = 1;
    if (sink != minus_infinity()) {
      const float sink2 = sink * kLog2e;
      const float higher = fmaxf(m, sink2);
      by = ptx::exp2(m - higher);
      l = l * by + ptx::exp2(sink2 - higher);
      m = higher;
    }
    if (!(l > 0)) return {0, minus_infinity()};
    return {by / l, (m + log2f(l)) * kLn2};
  }

 private:
  /// Weights of row tile r and their sums over this thread's columns.
  template <int kColumnTiles>
  __device__ __forceinline__ void exponentiate(int r, const float (&s)[kColumnTiles][4],
                                               std::uint32_t (&p)[kColumnTiles / 2][4],
                                               float (&sum)[2]) const {
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float low = ptx::exp2(fmaf(s[n][2 * half], factor_, -m_[r][half]));
        const float high = ptx::exp2(fmaf(s[n][2 * half + 1], factor_, -m_[r][half]));
        sum[half] += low + high;
        p[n / 2][n % 2 * 2 + half] = ptx::pack<T>(low, high);
      }
    }
  }

  /// This thread's largest scores of both rows.
  template <int kColumnTiles>
  __device__ __forceinline__ static void maxima(const float (&s)[kColumnTiles][4],
                                                float (&top)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = minus_infinity();
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        top[half] = fmaxf(top[half], fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      }
    }
  }

  /// Whether no weight of row tile r grows too large; `top`: this thread's largest scores.
  __device__ __forceinline__ bool trusted(int r, const float (&top)[2]) const {
    return top[0] * factor_ <= m_[r][0] + kTrustLog2 && top[1] * factor_ <= m_[r][1] + kTrustLog2;
  }

  /// Raises the references of row tile r to their maxima; `top`: this thread's.
  template <typename Rescale>
  __device__ __forceinline__ void raise(int r, const float (&top)[2], Rescale rescale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = top[half];
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float m = fmaxf(m_[r][half], highest * factor_);
      const float by = ptx::exp2(m_[r][half] - m);
      m_[r][half] = m;
      l_[r][half] *= by;
      rescale(r, half, by);
    }
  }

  float factor_;
  float m_[kRowTiles][2];
  float l_[kRowTiles][2];  ///< This thread's columns only, until finish.
};

}  // namespace tessera::cuda
