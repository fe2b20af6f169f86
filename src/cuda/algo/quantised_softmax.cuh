// Online softmax whose weights are rounded to E4M3, on scores that lie in registers as accumulators
// of wgmma or mma.sync (ptx/mma.cuh): one row tile, a thread has two rows, four neighbouring lanes
// share each of them.
//
// Weights are 2^(x − M + 8), x the score as an exponent of 2, M an integer, so that they are
// rounded in the same way whatever M is: in between 2⁻⁶ and 448 scaling by powers of two changes
// nothing. M is the row's running maximum rounded up, when it was last too low: it is raised only
// when a weight would exceed 448. Row sums are sums of rounded weights, which the kernels get from
// a column of ones beside V.
#pragma once

#include "cuda/algo/score.cuh"
#include "cuda/ptx/e4m3.cuh"
#include "cuda/ptx/mma.cuh"

namespace tessera::cuda {

class QuantisedSoftmax {
 public:
  __device__ QuantisedSoftmax() : reference_{kUntouched, kUntouched} {}

  /// This thread's largest products with the keys of one scale, of row `half`.
  template <int kTiles>
  __device__ __forceinline__ static float top(const std::int32_t (&s)[kTiles][4], int first,
                                              int count, int half) {
    int top = s[first][2 * half];
#pragma unroll
    for (int n = first; n < first + count; ++n) {
      top = __vimax3_s32(s[n][2 * half], s[n][2 * half + 1], top);
    }
    return static_cast<float>(top);
  }
  template <int kTiles>
  __device__ __forceinline__ static float top(const float (&s)[kTiles][4], int first, int count,
                                              int half) {
    float top = minus_infinity();
#pragma unroll
    for (int n = first; n < first + count; ++n) {
      top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    }
    return top;
  }

  /// This thread's largest score of row `half` if it is not negative, else any negative one or NaN.
  /// Bits of floats that are not negative have their order, those of all others are negative
  /// integers; and the maximum of integers has three operands where that of floats has two.
  template <int kTiles>
  __device__ __forceinline__ static float top_unless_negative(const float (&s)[kTiles][4],
                                                              int half) {
    int top = __float_as_int(s[0][2 * half]);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      top = __vimax3_s32(__float_as_int(s[n][2 * half]), __float_as_int(s[n][2 * half + 1]), top);
    }
    return __int_as_float(top);
  }

  /// Takes this thread's largest exponents. Whether what was accumulated has to be multiplied by
  /// `by`.
  __device__ __forceinline__ bool prepare(const float (&top)[2], float (&by)[2]) {
    const bool trusted =
        top[0] <= reference_[0] + kTrustLog2 && top[1] <= reference_[1] + kTrustLog2;
    if (__all_sync(~0u, trusted)) return false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = top[half];
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float raised = fmaxf(reference_[half], ceilf(highest) - kTopLog2);
      by[half] = ptx::exp2(reference_[half] - raised);
      reference_[half] = raised;
    }
    return true;
  }

  /// Takes references of other keys: what was accumulated is to be multiplied by `by`, what they go
  /// with by `by_others`.
  __device__ __forceinline__ void join(const float (&others)[2], float (&by)[2],
                                       float (&by_others)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float raised = fmaxf(reference_[half], others[half]);
      by[half] = ptx::exp2(reference_[half] - raised);
      by_others[half] = ptx::exp2(others[half] - raised);
      reference_[half] = raised;
    }
  }

  /// Weights of scores that are `factor` times an exponent of 2.
  template <typename Number>
  __device__ __forceinline__ float weight(Number s, float factor, int half) const {
    return weight_above(s, factor, reference_[half]);
  }
  template <typename Number>
  __device__ __forceinline__ static float weight_above(Number s, float factor, float reference) {
    return ptx::exp2(fmaf(static_cast<float>(s), factor, -reference));
  }
  /// What a row's exponents are less.
  __device__ __forceinline__ float reference(int half) const { return reference_[half]; }

  /// Of a row when all tiles are done.
  struct Result {
    float scale;   ///< What the accumulator is multiplied by; 0 in a row without scores.
    float weight;  ///< Part of the denominator that is not the sink's; 0 in a row without scores.
    float lse;     ///< Natural logarithm; −inf in a row without scores.
  };

  /// `sum`: of the row's rounded weights; `exact`: this thread's part of that of the weights before
  /// rounding, which is the lse's. `sink` (natural units) is one more score, without a value; −inf:
  /// none. All lanes call it.
  __device__ __forceinline__ Result finish(int half, float sum, float exact, float sink) const {
    exact += __shfl_xor_sync(~0u, exact, 1);
    exact += __shfl_xor_sync(~0u, exact, 2);
    float m = sum > 0 ? reference_[half] : minus_infinity();
    float by = 1, l = sum;
    if (sink != minus_infinity()) {
      const float sink2 = sink * kLog2e;
      const float higher = fmaxf(m, sink2);
      by = ptx::exp2(m - higher);
      const float added = ptx::exp2(sink2 - higher);
      l = l * by + added;
      exact = exact * by + added;
      m = higher;
    }
    if (l == 0) return {0, 0, minus_infinity()};
    return {by / l, sum * by / l, (m + log2f(exact)) * kLn2};
  }

 private:
  static constexpr float kTopLog2 = 8;      ///< A row's largest weight is in (128, 256] at first.
  static constexpr float kTrustLog2 = 8.8;  ///< Below log2(448).
  /// As in OnlineSoftmax.
  static constexpr float kUntouched = -1e38f;

  float reference_[2];  ///< M − 8.
};

}  // namespace tessera::cuda
