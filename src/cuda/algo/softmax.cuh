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
//
// Kernels that take it in steps have both tests: of the sums where scores that were overwritten can
// be had again, else of the maxima.
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
  /// The same for sums whose test costs a product: as much as f16 allows.
  static constexpr float kTrustedSum = 16384.0f;
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
  /// when the next scores are there. Either prepare, and rescale by `by` if it says so,
  /// exponentiate and pack; or exponentiate and pack, and if the sums are not trusted, raise,
  /// rescale, and both again on the same scores. Then add. Rows without any score yet (not settled)
  /// settle before.
  template <int kColumnTiles>
  __device__ __forceinline__ bool prepare(const float (&s)[kRowTiles][kColumnTiles][4],
                                          float (&by)[2]) {
    float top[2];
    maxima_from_zero(s[0], top);
    if (__all_sync(~0u, trusted(0, top))) return false;
    maxima(s[0], top);
    if (__all_sync(~0u, trusted(0, top))) return false;
    raise(0, top, [&by](int, int half, float factor) { by[half] = factor; });
    return true;
  }

  /// Turns scores into weights in place; `sum`: of this thread's columns.
  template <int kColumnTiles>
  __device__ __forceinline__ void exponentiate(float (&s)[kRowTiles][kColumnTiles][4],
                                               float (&sum)[2]) const {
    static_assert(kRowTiles == 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] = 0;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[0][n][2 * half + e];
          x = ptx::exp2(fmaf(x, factor_, -m_[0][half]));
          sum[half] += x;
        }
      }
    }
  }

  /// Whether no weight of the warp's rows was too large; infinite ones are.
  __device__ __forceinline__ static bool trusts(const float (&sum)[2]) {
    return __all_sync(~0u, fmaxf(sum[0], sum[1]) <= kTrustedSum);
  }

  /// Takes weights into the row sums.
  __device__ __forceinline__ void add(const float (&sum)[2]) {
    l_[0][0] += sum[0];
    l_[0][1] += sum[1];
  }

  /// −inf where a packed weight is 0: masked scores, and those that are nothing beside a reference
  /// that is too low already.
  template <int kColumnTiles>
  __device__ __forceinline__ static void mask_as(
      const std::uint32_t (&p)[kRowTiles][kColumnTiles / 2][4],
      float (&s)[kRowTiles][kColumnTiles][4]) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t word = p[0][n / 2][n % 2 * 2 + half];
        if ((word & 0xffff) == 0) s[0][n][2 * half] = minus_infinity();
        if (word >> 16 == 0) s[0][n][2 * half + 1] = minus_infinity();
      }
    }
  }

  /// Raises references to the maxima of these scores. Accumulators are to be multiplied by `by`.
  template <int kColumnTiles>
  __device__ __forceinline__ void raise(const float (&s)[kRowTiles][kColumnTiles][4],
                                        float (&by)[2]) {
    float top[2];
    maxima(s[0], top);
    raise(0, top, [&by](int, int half, float factor) { by[half] = factor; });
  }

  /// Whether all of the warp's rows have a reference.
  __device__ __forceinline__ bool settled() const {
    return __all_sync(~0u, fminf(m_[0][0], m_[0][1]) > kUntouched);
  }

  /// Gives rows without a reference that of their first scores. What was summed up for them is 0.
  template <int kColumnTiles>
  __device__ __forceinline__ void settle(const float (&s)[kRowTiles][kColumnTiles][4]) {
    float top[2];
    maxima(s[0], top);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float m = fmaxf(kUntouched, of_row(top[half]) * factor_);
      if (m_[0][half] == kUntouched) m_[0][half] = m;
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

  /// The same, or 0 where they are below: floats that are not negative compare as integers do, and
  /// of those Hopper has a maximum of three.
  template <int kColumnTiles>
  __device__ __forceinline__ static void maxima_from_zero(const float (&s)[kColumnTiles][4],
                                                          float (&top)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int highest = 0;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        highest = __vimax3_s32(highest, __float_as_int(s[n][2 * half]),
                               __float_as_int(s[n][2 * half + 1]));
      }
      top[half] = __int_as_float(highest);
    }
  }

  /// The largest of the four lanes that share a row.
  __device__ __forceinline__ static float of_row(float top) {
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    return fmaxf(top, __shfl_xor_sync(~0u, top, 2));
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
      const float m = fmaxf(m_[r][half], of_row(top[half]) * factor_);
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
