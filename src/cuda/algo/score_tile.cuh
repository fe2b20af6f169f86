// What happens between q · k and the softmax, on a warp's tile of scores that lies in registers as
// mma accumulators (ptx/mma.cuh): 16 · kRowTiles rows of queries, 8 · kColumnTiles keys.
// score.cuh has the same for single elements.
//
// Warps lie one below the other. In the lane with g = lane / 4, t = lane % 4, element
// s[r][n][2 · half + e] is that of query row0 + 16 · kRowTiles · warp + 16 r + 8 half + g and key
// j0 + 8 n + 2 t + e.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/philox.cuh"
#include "cuda/algo/score.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/opaque.cuh"

namespace tessera::cuda {

/// Stands for f16 or bf16 where a kernel learns only when it runs which of them its tensors have.
struct EitherHalf {
  std::uint16_t bits;
};

/// The bits of the block mask for query i and keys [j0, j0 + keys), keys ≤ 64, j0 a multiple of 16.
__device__ inline std::uint64_t block_mask_bits(const Parameters& p, int b, int h, int i, int j0,
                                                int keys) {
  const BlockMaskView& mask = p.block_mask;
  const MaskLines rows = mask_lines<Side::queries>(p, b, h);
  const int row = i / rows.line_size;
  const int words = (rows.block_size + 31) / 32;
  std::int64_t entry = min(max(rows.offsets[row], static_cast<std::int64_t>(0)), mask.entries);
  const std::int64_t end = min(max(rows.offsets[row + 1], entry), mask.entries);
  for (std::int64_t high = end; entry < high;) {  // the first entry that ends behind j0
    const std::int64_t middle = (entry + high) / 2;
    if (rows.blocks[middle] < j0 / rows.block_size) {
      entry = middle + 1;
    } else {
      high = middle;
    }
  }
  std::uint64_t bits = 0;
#pragma unroll 1
  for (int j = j0; j < j0 + keys; j += kGranule) {
    const int column = j / rows.block_size;
    while (entry < end && rows.blocks[entry] < column) ++entry;
    if (entry >= end) break;
    if (rows.blocks[entry] != column) continue;
    const std::int64_t partial = mask.bits_index[entry];
    std::uint64_t granule = 0xffff;
    if (partial >= 0) {
      if (partial >= mask.partial_blocks) continue;
      const int in_column = j - column * rows.block_size;
      const std::int64_t line = partial * rows.line_size + (i - row * rows.line_size);
      granule = mask.bits[line * words + in_column / 32] >> (in_column % 32) & 0xffff;
    }
    bits |= granule << (j - j0);
  }
  return bits;
}

/// kParts neighbouring warps share rows.
template <typename T, int kRowTiles, int kColumnTiles, int kParts = 1>
class ScoreTile {
 public:
  using Scores = float[kRowTiles][kColumnTiles][4];
  using Weights = std::uint32_t[kRowTiles][kColumnTiles / 2][4];

  /// `row0`: the block's first query within the sequence.
  __device__ ScoreTile(const Parameters& p, const Sequence& sequence, int b, int h, int row0)
      : p_(p), sequence_(sequence), b_(b), h_(h), row0_(row0) {}

  /// −inf where causal mask, window and used length hide the key.
  __device__ __forceinline__ void mask_positions(Scores& s, int j0) const {
    const Lane lane;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int position = row(lane, r, half) + sequence_.shift;
        const int column0 = j0 + 2 * lane.t;
        const int first = position - p_.window_left - column0;
        const int last = min(sequence_.kv_len, position + p_.window_right + 1) - column0;
        const auto width = static_cast<unsigned>(max(last - first, 0));
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const bool seen = static_cast<unsigned>(8 * n + e - first) < width;
            if (!seen) s[r][n][2 * half + e] = minus_infinity();
          }
        }
      }
    }
  }

  /// Whether scores need `score`; else they are scale · q · k.
  __device__ static bool needed(const Parameters& p) {
    return p.softcap > 0 || p.bias.data != nullptr || p.alibi_slopes != nullptr ||
           p.mask.data != nullptr || !(p.scale > 0);
  }

  /// From q · k to the score in kScoreUnit: scale, softcap, bias, ALiBi and the boolean mask. Reads
  /// bias and mask within used lengths only; what lies beyond them is for mask_positions.
  __device__ __forceinline__ void score(Scores& s, int j0) const {
    if (std::is_same_v<T, float> && p_.softcap > 0) {
      const float to_cap = p_.scale / p_.softcap;
      for_each(s, [&](float& x, int, int, int) { x = p_.softcap * tanhf(to_cap * x); });
    } else if (p_.softcap > 0) {
      const float to_cap = 2 * kLog2e * p_.scale / p_.softcap;
      const float cap = p_.softcap * kLog2e;
      for_each(s, [&](float& x, int, int, int) {  // tanh x = 1 − 2 / (e^2x + 1)
        x = cap - 2 * cap * __frcp_rn(ptx::exp2(to_cap * x) + 1);
      });
    } else {
      const float scale = p_.scale * kScoreUnit<T>;
      for_each(s, [&](float& x, int, int, int) { x *= scale; });
    }
    if (p_.bias.data != nullptr) {
      if (p_.bias.dtype == DType::f32) {
        add_bias<float>(s, j0);
      } else if constexpr (!std::is_same_v<T, EitherHalf>) {
        add_bias<T>(s, j0);
      } else if (p_.bias.dtype == DType::f16) {
        add_bias<__half>(s, j0);
      } else {
        add_bias<__nv_bfloat16>(s, j0);
      }
    }
    if (p_.alibi_slopes != nullptr) {
      const float slope = p_.alibi_slopes[b_ * p_.alibi_stride_b + h_] * kScoreUnit<T>;
      const Lane lane;
      for_each(s, [&](float& x, int r, int half, int column) {
        const int distance = row(lane, r, half) + sequence_.shift - j0 - 2 * lane.t - column;
        x -= slope * static_cast<float>(abs(distance));
      });
    }
    if (p_.mask.data != nullptr) {
      for_each_element<std::uint8_t>(s, p_.mask, j0, [](float& x, std::uint8_t attends) {
        if (attends == 0) x = minus_infinity();
      });
    }
  }

  /// −inf where the block mask has no element. Lane l reads the bits of the warp's row l, a word of
  /// 64 keys at a time.
  __device__ __forceinline__ void mask_blocks(Scores& s, int j0) const {
    const Lane lane;
    const int in_warp = (4 * lane.g + lane.t) % (16 * kRowTiles);
    const int i = min(row(lane, 0, 0) - lane.g + in_warp, sequence_.q_len - 1);
#pragma unroll
    for (int chunk = 0; chunk < kColumnTiles; chunk += 8) {
      const std::uint64_t bits =
          block_mask_bits(p_, b_, h_, i, j0 + 8 * chunk, 8 * min(8, kColumnTiles - chunk));
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int word = 0; word < 8; word += 4) {  // four column tiles each
            const std::uint32_t own = __shfl_sync(~0u, static_cast<unsigned>(bits >> (8 * word)),
                                                  16 * r + 8 * half + lane.g) >>
                                      (2 * lane.t);
#pragma unroll
            for (int n = 0; n < 4; ++n) {
              if (chunk + word + n >= kColumnTiles) break;
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                const bool listed = (own >> (8 * n + e) & 1) != 0;
                if (!listed) s[r][chunk + word + n][2 * half + e] = minus_infinity();
              }
            }
          }
        }
      }
    }
  }

  /// Dropout: zero where Philox says so.
  __device__ __forceinline__ void drop(Weights& weights, int j0) const {
    for_each_drawn(j0, [&](int r, int n, int half, unsigned low, unsigned high) {
      weights[r][n / 2][n % 2 * 2 + half] &= low * 0xffffu | high * 0xffff0000u;
    });
  }
  __device__ __forceinline__ void drop(Scores& weights, int j0) const {
    for_each_drawn(j0, [&](int r, int n, int half, unsigned low, unsigned high) {
      if (low == 0) weights[r][n][2 * half] = 0;
      if (high == 0) weights[r][n][2 * half + 1] = 0;
    });
  }

  /// visit(r, n, half, low, high) with dropout's bits of two neighbouring keys, 1 = kept. One call
  /// of Philox decides on 4 keys of a row, which two lanes hold: the even one draws for row g, the
  /// odd one for row g + 8, then they exchange.
  template <typename Visit>
  __device__ __forceinline__ void for_each_drawn(int j0, Visit visit) const {
    static_assert(kColumnTiles <= 8, "the bits of a row tile are one 32-bit word");
    const Lane lane;
    const int odd = lane.t % 2;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      unsigned drawn = 0;  // 4 bits for each column tile
#pragma unroll 1
      for (int n = 0; n < kColumnTiles; ++n) {
        const uint4 words =
            dropout_words(p_, b_, h_, row(lane, r, odd), (j0 + 8 * n) / 4 + lane.t / 2);
        const unsigned threshold = p_.dropout_threshold;
        const unsigned kept = (words.x >= threshold ? 1u : 0) | (words.y >= threshold ? 2u : 0) |
                              (words.z >= threshold ? 4u : 0) | (words.w >= threshold ? 8u : 0);
        drawn |= kept << (4 * n);
      }
      const unsigned other = __shfl_xor_sync(~0u, drawn, 1);
      const unsigned rows[2] = {(odd == 0 ? drawn : other) >> (2 * odd),
                                (odd == 0 ? other : drawn) >> (2 * odd)};
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          visit(r, n, half, rows[half] >> (4 * n) & 1u, rows[half] >> (4 * n + 1) & 1u);
        }
      }
    }
  }

  /// d *= the softcap's derivative where q · k is s.
  __device__ __forceinline__ void multiply_by_cap_slope(Scores& d, const Scores& s) const {
    const float to_cap = p_.scale / p_.softcap;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float t = tanhf(to_cap * s[r][n][e]);
          d[r][n][e] *= 1 - t * t;
        }
      }
    }
  }

 private:
  /// Computed anew wherever it is needed: most tiles need none of it, and registers are short.
  struct Lane {
    int warp, g, t;
    __device__ __forceinline__ Lane() {
      unsigned thread = threadIdx.x;
      ptx::make_opaque(thread);
      warp = static_cast<int>(thread / (kWarpSize * kParts));
      g = static_cast<int>(thread % kWarpSize / 4);
      t = static_cast<int>(thread % 4);
    }
  };

  __device__ __forceinline__ int row(const Lane& lane, int r, int half) const {
    return row0_ + 16 * kRowTiles * lane.warp + 16 * r + 8 * half + lane.g;
  }

  /// visit(element, r, half, column), the column counted from this thread's first.
  template <typename Visit>
  __device__ __forceinline__ static void for_each(Scores& s, Visit visit) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int at = 0; at < 4; ++at) visit(s[r][n][at], r, at / 2, 8 * n + at % 2);
      }
    }
  }

  /// visit(score, element of `tensor`); the nearest used element for those out of bounds.
  template <typename Element, typename Visit>
  __device__ __forceinline__ void for_each_element(Scores& s, const ScoreTensor& tensor, int j0,
                                                   Visit visit) const {
    const Lane lane;
    const auto* plane =
        static_cast<const Element*>(tensor.data) + b_ * tensor.stride_b + h_ * tensor.stride_h;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Element* elements =
            plane + min(row(lane, r, half), sequence_.q_len - 1) * tensor.stride_i;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int j = min(j0 + 8 * n + 2 * lane.t + e, sequence_.kv_len - 1);
            visit(s[r][n][2 * half + e], elements[j]);
          }
        }
      }
    }
  }

  template <typename Element>
  __device__ __forceinline__ void add_bias(Scores& s, int j0) const {
    for_each_element<Element>(s, p_.bias, j0, [](float& x, Element element) {
      x = fmaf(to_float(element), kScoreUnit<T>, x);
    });
  }

  const Parameters& p_;
  const Sequence sequence_;
  int b_, h_, row0_;
};

}  // namespace tessera::cuda
