// What happens to a score between q · k and the softmax, for one query head of one sequence:
//   s = scale · qk  →  softcap · tanh(s / softcap)  →  + bias − slope · |i + a − j|  →  mask
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/algo/philox.cuh"
#include "cuda/algo/sequence.cuh"

namespace tessera::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float plus_infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// What tile kernels keep scores in: exponents of 2 for 16-bit dtypes, which saves a
/// multiplication; natural ones for f32, whose roundings the change of base would add to.
template <typename T>
inline constexpr float kScoreUnit = sizeof(T) == sizeof(float) ? 1.0f : kLog2e;

/// A score after softcap, bias and ALiBi, and the softcap's derivative there.
struct Score {
  float s;
  float cap_slope;
};

template <typename T>
class HeadScores {
 public:
  __device__ HeadScores(const Parameters& p, const Sequence& sequence, int b, int h)
      : p_(p), sequence_(sequence), b_(b), h_(h) {
    if (p.alibi_slopes != nullptr && b < p.batch) {
      slope_ = p.alibi_slopes[b * p.alibi_stride_b + h];
    }
  }

  /// Whether query i attends to key j as far as everything but block masks and bias goes.
  __device__ __forceinline__ bool attends(int i, int j) const {
    if (!visible(p_, sequence_, i, j)) return false;
    if (p_.mask.data == nullptr) return true;
    return static_cast<const std::uint8_t*>(p_.mask.data)[offset(p_.mask, i, j)] != 0;
  }

  /// Whether scores are scale · q · k wherever pairs attend, and positions alone decide on that.
  __device__ __forceinline__ bool plain() const {
    return !(p_.softcap > 0) && p_.bias.data == nullptr && p_.alibi_slopes == nullptr &&
           p_.mask.data == nullptr;
  }

  /// From q · k of a pair that attends; −inf where the bias says so.
  __device__ __forceinline__ Score score(float qk, int i, int j) const {
    Score out{__fmul_rn(p_.scale, qk), 1.0f};  // the same in both passes
    if (p_.softcap > 0) {
      const float t = tanhf(out.s / p_.softcap);
      out = {p_.softcap * t, 1.0f - t * t};
    }
    if (p_.bias.data != nullptr) out.s += bias(i, j);
    if (p_.alibi_slopes != nullptr) {
      out.s -= slope_ * static_cast<float>(abs(i + sequence_.shift - j));
    }
    return out;
  }

  __device__ __forceinline__ float bias(int i, int j) const {
    const std::int64_t at = offset(p_.bias, i, j);
    return p_.bias.dtype == DType::f32 ? static_cast<const float*>(p_.bias.data)[at]
                                       : to_float(static_cast<const T*>(p_.bias.data)[at]);
  }

  /// Dropout's factor.
  __device__ __forceinline__ float keep(int i, int j) const {
    return p_.dropout_threshold == 0 ? p_.keep_scale : dropout_keep(p_, b_, h_, i, j);
  }

 private:
  __device__ __forceinline__ std::int64_t offset(const ScoreTensor& t, int i, int j) const {
    return b_ * t.stride_b + h_ * t.stride_h + i * t.stride_i + j;
  }

  const Parameters& p_;
  const Sequence& sequence_;
  int b_, h_;
  float slope_ = 0;
};

}  // namespace tessera::cuda
