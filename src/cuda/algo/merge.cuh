// Partial results of a row of attention, merged by their LSEs.
#pragma once

#include "cuda/algo/score.cuh"

namespace tessera::cuda {

/// m is the largest LSE, l = Σ exp(lse − m).
struct Merged {
  float m = minus_infinity();
  float l = 0;
  __device__ float weight(float lse) const { return l > 0 ? expf(lse - m) / l : 0.0f; }
  __device__ float lse() const { return l > 0 ? m + logf(l) : minus_infinity(); }
};

template <typename LseOf>
__device__ __forceinline__ Merged merge(int count, float sink, LseOf lse_of) {
  Merged merged;
  merged.m = sink;
  for (int x = 0; x < count; ++x) merged.m = fmaxf(merged.m, lse_of(x));
  if (merged.m == minus_infinity()) return merged;
  merged.l = expf(sink - merged.m);
  for (int x = 0; x < count; ++x) merged.l += expf(lse_of(x) - merged.m);
  return merged;
}

}  // namespace tessera::cuda
