// From products to weights and score gradients, in registers, for one warp's part of a tile.
//
// Scores lie transposed: accumulator s[kR][kC] has keys as rows and queries as columns, so that
// rounded to 16 bits it is the operand A of d_v += pᵀ · d_o and d_k += d_sᵀ · q.
//   p    = 2^(log2e · score − log2e · lse)
//   d_s  = p · (z · d_p − delta) · cap'          z: dropout's factor; cap': the softcap's slope
// Every feature is a pass over the part of its own, so that a tile pays for those that are on.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/score.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/opaque.cuh"

namespace tessera::cuda::sm80 {

/// Rounded operands made of scores: p (0 where dropped) and d_s.
template <int kR, int kC>
struct ScoreOperands {
  std::uint32_t weights[kR][kC / 2][4];
  std::uint32_t d_s[kR][kC / 2][4];
};

/// The queries' scalars in shared memory, from the part's first query on: lse in kScoreUnit, delta.
/// lse is +inf where p has to be 0: rows that do not exist or see nothing.
struct QueryScalars {
  const float* lse;
  const float* delta;
};

template <typename T, int kR, int kC>
class ScorePart {
 public:
  static_assert(kR * kC * 4 <= 32, "dropout's bits are one word");
  using Scores = float[kR][kC][4];

  /// `key`, `query`: the part's first, in the sequence.
  __device__ ScorePart(const Parameters& p, const Sequence& sequence, int b, int h, int key,
                       int query, const QueryScalars& scalars)
      : p_(p), sequence_(sequence), b_(b), h_(h), scalars_(scalars) {
    unsigned thread = threadIdx.x;
    ptx::make_opaque(thread);  // not worth registers between steps
    key_ = key + static_cast<int>(thread % kWarpSize / 4);
    query_ = query + static_cast<int>(thread % 4 * 2);
  }

  /// −inf where causal mask, window and used lengths hide the key.
  __device__ __forceinline__ void hide_positions(Scores& s) const {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int query = query_of(c, e);
        const int position = query + sequence_.shift;
        const int first = position - p_.window_left - key_;
        const int last = min(sequence_.kv_len, position + p_.window_right + 1) - key_;
        const auto width =
            static_cast<unsigned>(query < sequence_.q_len ? max(last - first, 0) : 0);
#pragma unroll
        for (int r = 0; r < kR; ++r) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const bool seen = static_cast<unsigned>(16 * r + 8 * half - first) < width;
            if (!seen) s[r][c][2 * half + e] = minus_infinity();
          }
        }
      }
    }
  }

  /// −inf where the block mask has no element.
  __device__ __forceinline__ void hide_blocks(Scores& s) const {
    unsigned seen = 0;
#pragma unroll 1
    for (int square = 0; square < kR * kC / 2; ++square) {
      const int r = square / (kC / 2), c = square % (kC / 2) * 2;
      const int i = min(query_of(c, 0), sequence_.q_len - 1);
      const int j = min(key_of(r, 0), sequence_.kv_len - 1);
      const MaskGranule granule = mask_granule(p_, b_, h_, i, j);
      unsigned bits = 0;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (granule.allows(query_of(c + e / 4, e), key_of(r, e % 4))) bits |= 1u << e;
      }
      seen |= bits << ((r * kC + c) * 4);
    }
    for_each([&](int r, int c, int e) {
      if (!is_set(seen, r, c, e)) s[r][c][e] = minus_infinity();
    });
  }

  /// From q · k to the score in kScoreUnit; from d_p to what p is multiplied by for d_s. Reads bias
  /// and mask within used lengths only; what lies beyond them is for hide_positions. Returns a bit
  /// for each element in the order of for_each: set if dropout keeps it.
  __device__ __forceinline__ unsigned apply_extras(Scores& s, Scores& d_p) const {
    unsigned kept = ~0u;
    if (p_.dropout_threshold != 0) {
      kept = draw_dropout();
      for_each([&](int r, int c, int e) {
        d_p[r][c][e] = is_set(kept, r, c, e) ? p_.keep_scale * d_p[r][c][e] : 0.0f;
      });
    }
    subtract_delta(d_p);
    if (std::is_same_v<T, float> && p_.softcap > 0) {
      const float to_cap = p_.scale / p_.softcap;
      for_each([&](int r, int c, int e) {
        const float t = tanhf(to_cap * s[r][c][e]);
        s[r][c][e] = p_.softcap * t;
        d_p[r][c][e] *= 1 - t * t;
      });
    } else if (p_.softcap > 0) {
      const float to_cap = 2 * kLog2e * p_.scale / p_.softcap;
      const float cap = p_.softcap * kLog2e;
      for_each([&](int r, int c, int e) {  // tanh x = 1 − 2 / (e^2x + 1)
        const float t = 1 - 2 * __frcp_rn(ptx::exp2(to_cap * s[r][c][e]) + 1);
        s[r][c][e] = cap * t;
        d_p[r][c][e] *= 1 - t * t;
      });
    } else {
      const float scale = p_.scale * kScoreUnit<T>;
      for_each([&](int r, int c, int e) { s[r][c][e] *= scale; });
    }
    if (p_.bias.data != nullptr) {
      const auto add = [](float& x, auto bias) { x = fmaf(to_float(bias), kScoreUnit<T>, x); };
      if (p_.bias.dtype == DType::f32) {
        for_each_of<float>(p_.bias, s, add);
      } else {
        for_each_of<T>(p_.bias, s, add);
      }
    }
    if (p_.alibi_slopes != nullptr) {
      const float slope = p_.alibi_slopes[b_ * p_.alibi_stride_b + h_] * kScoreUnit<T>;
      const int distance = query_ + sequence_.shift - key_;
      for_each([&](int r, int c, int e) {
        const int own = distance + 8 * c + e % 2 - 16 * r - e / 2 * 8;
        s[r][c][e] -= slope * static_cast<float>(abs(own));
      });
    }
    if (p_.mask.data != nullptr) {
      for_each_of<std::uint8_t>(p_.mask, s, [](float& x, std::uint8_t attends) {
        if (attends == 0) x = minus_infinity();
      });
    }
    return kept;
  }

  /// d_p −= delta.
  __device__ __forceinline__ void subtract_delta(Scores& d_p) const {
    for_each_column(scalars_.delta, [&](int c, float2 delta) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) d_p[r][c][e] -= e % 2 == 0 ? delta.x : delta.y;
      }
    });
  }

  /// p = 2^(factor · s − lse), d_s = p · d_p.
  __device__ __forceinline__ void finish(const Scores& s, const Scores& d_p, float factor,
                                         unsigned kept, ScoreOperands<kR, kC>& out) const {
    static_assert(!std::is_same_v<T, float>);
    for_each_column(scalars_.lse, [&](int c, float2 lse) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int e = 2 * half;
          float left = ptx::exp2(fmaf(s[r][c][e], factor, -lse.x));
          float right = ptx::exp2(fmaf(s[r][c][e + 1], factor, -lse.y));
          out.d_s[r][c / 2][c % 2 * 2 + half] =
              ptx::pack<T>(left * d_p[r][c][e], right * d_p[r][c][e + 1]);
          if (!is_set(kept, r, c, e)) left = 0;
          if (!is_set(kept, r, c, e + 1)) right = 0;
          out.weights[r][c / 2][c % 2 * 2 + half] = ptx::pack<T>(left, right);
        }
      }
    });
  }

  /// f32, in place: s becomes p, 0 where dropped, and d_p becomes d_s.
  __device__ __forceinline__ void finish(Scores& s, Scores& d_p, float factor,
                                         unsigned kept) const {
    for_each_column(scalars_.lse, [&](int c, float2 lse) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float score = __fmul_rn(s[r][c][e], factor);  // as the forward pass rounds it
          const float p = ptx::exp2(__fsub_rn(score, e % 2 == 0 ? lse.x : lse.y) * kLog2e);
          d_p[r][c][e] *= p;
          s[r][c][e] = is_set(kept, r, c, e) ? p : 0;
        }
      }
    });
  }

 private:
  __device__ __forceinline__ int key_of(int r, int e) const { return key_ + 16 * r + e / 2 * 8; }
  __device__ __forceinline__ int query_of(int c, int e) const { return query_ + 8 * c + e % 2; }

  __device__ __forceinline__ static bool is_set(unsigned bits, int r, int c, int e) {
    return (bits >> ((r * kC + c) * 4 + e) & 1u) != 0;
  }

  template <typename Visit>
  __device__ __forceinline__ static void for_each(Visit visit) {
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int c = 0; c < kC; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) visit(r, c, e);
      }
    }
  }

  /// visit(c, the scalars of this thread's two queries in column tile c).
  template <typename Visit>
  __device__ __forceinline__ static void for_each_column(const float* scalars, Visit visit) {
    const float* own = scalars + threadIdx.x % 4 * 2;
#pragma unroll
    for (int c = 0; c < kC; ++c) visit(c, *reinterpret_cast<const float2*>(own + 8 * c));
  }

  /// visit(score, element of `tensor`); the nearest used element for those out of bounds.
  template <typename Element, typename Visit>
  __device__ __forceinline__ void for_each_of(const ScoreTensor& tensor, Scores& s,
                                              Visit visit) const {
    const auto* plane =
        static_cast<const Element*>(tensor.data) + b_ * tensor.stride_b + h_ * tensor.stride_h;
#pragma unroll
    for (int c = 0; c < kC; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Element* row = plane + min(query_of(c, e), sequence_.q_len - 1) * tensor.stride_i;
#pragma unroll
        for (int r = 0; r < kR; ++r) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            visit(s[r][c][2 * half + e], row[min(key_of(r, 2 * half), sequence_.kv_len - 1)]);
          }
        }
      }
    }
  }

  /// One call of Philox decides on four neighbouring keys of a query, which four lanes hold. Each
  /// draws for one of the four queries that it has in a square of 16 × 16, then they exchange.
  __device__ __forceinline__ unsigned draw_dropout() const {
    const int own = static_cast<int>(threadIdx.x) % kWarpSize / 4 % 4;
    unsigned drawn = 0;
#pragma unroll 1
    for (int x = 0; x < kR * kC; ++x) {  // row tile, pair of column tiles, half
      const int r = x / kC, c = x % kC / 2 * 2, half = x % 2;
      const uint4 words =
          dropout_words(p_, b_, h_, query_of(c + own / 2, own % 2), key_of(r, 2 * half) / 4);
      const unsigned threshold = p_.dropout_threshold;
      unsigned bits = (words.x >= threshold ? 1u : 0) | (words.y >= threshold ? 2u : 0) |
                      (words.z >= threshold ? 4u : 0) | (words.w >= threshold ? 8u : 0);
      bits <<= 4 * own;
      bits |= __shfl_xor_sync(~0u, bits, 4);
      bits |= __shfl_xor_sync(~0u, bits, 8);  // bit 4 · query + key
      bits >>= own;
      drawn |= ((bits & 1u) | (bits >> 3 & 2u)) << ((r * kC + c) * 4 + 2 * half);
      drawn |= ((bits >> 8 & 1u) | (bits >> 11 & 2u)) << ((r * kC + c + 1) * 4 + 2 * half);
    }
    return drawn;
  }

  const Parameters& p_;
  const Sequence& sequence_;
  int b_, h_;
  int key_, query_;  ///< Of element [0][0][0] of this thread.
  QueryScalars scalars_;
};

}  // namespace tessera::cuda::sm80
