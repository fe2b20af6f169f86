// f32 numbers on 16-bit tensor cores: each as the exact sum of three bf16 terms.
//
//   x = x₀ + x₁ + x₂      x₀: x cut off after 8 bits; x₁: the rest rounded to 8; x₂: what is left
//
// x has 24 bits, so the rest x − x₀ has 16 and x − x₀ − x₁ at most 8: nothing is lost, as long as x
// is above 2^−110 (bf16 has f32's exponents, the last bits of smaller numbers lie below them). x₀
// is cut off, not rounded, so that no finite number becomes infinite and that the partial sums of a
// product with 1 are never longer than x: it gives x back.
//
// Of the nine products of a · b the six largest are computed, smallest first,
//   a₂b₀ + a₁b₁ + a₀b₂ + a₁b₀ + a₀b₁ + a₀b₀
// The other three are at most 2^−7 · 2^−16 · 2 + 2^−32 of |a b|, with either sign: below one
// rounding of f32. Tensor cores cut off what does not fit the accumulator instead of rounding it,
// always towards zero. So sums over long rows are not theirs: every 16 products get a fresh
// accumulator, in which only the last of the six can lose anything, and f32 additions, which round,
// bring them together.
#pragma once

#include "cuda/algo/split_rows.hpp"
#include "cuda/ptx/mma.cuh"
#include "cuda/tile/products.cuh"

namespace tessera::cuda {

/// Two neighbouring elements as terms, packed as operands have them.
struct SplitPair {
  std::uint32_t terms[kTerms];
};

__device__ __forceinline__ SplitPair split(float low, float high) {
  const auto upper = [](std::uint32_t word) { return __uint_as_float(word & 0xffff0000u); };
  SplitPair pair;
  pair.terms[0] = ptx::pack_upper(low, high);
  low -= upper(__float_as_uint(low));
  high -= upper(__float_as_uint(high));
  pair.terms[1] = ptx::pack<__nv_bfloat16>(low, high);
  low -= __uint_as_float(pair.terms[1] << 16);
  high -= upper(pair.terms[1]);
  pair.terms[2] = ptx::pack_upper(low, high);
  return pair;
}

/// An operand A [16 × 16], or two operands B [16 × 8], the second behind the first.
struct SplitOperand {
  std::uint32_t terms[kTerms][4];

  /// Element pair e of this thread (ptx/mma.cuh).
  __device__ __forceinline__ void set(int e, float low, float high) {
    const SplitPair pair = split(low, high);
#pragma unroll
    for (int t = 0; t < kTerms; ++t) terms[t][e] = pair.terms[t];
  }
};

/// Accumulator tiles 2 k and 2 k + 1 as an operand A.
template <int kC>
__device__ __forceinline__ SplitOperand split_operand(const float (&acc)[kC][4], int k) {
  SplitOperand a;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    a.set(e, acc[2 * k + e / 2][e % 2 * 2], acc[2 * k + e / 2][e % 2 * 2 + 1]);
  }
  return a;
}

/// Elements from one term of split rows to the next.
__device__ __forceinline__ int term_stride(const Rows& split) {
  return static_cast<int>(split.stride_s) / kTerms;
}

/// Stores two neighbouring floats of a row of which `left` are left; `vectors`: where 8 bytes
/// allow.
__device__ __forceinline__ void store_pair(float* to, bool vectors, int left, float low,
                                           float high) {
  if (vectors) {
    if (left > 0) *reinterpret_cast<float2*>(to) = {low, high};
  } else {
    if (left > 0) to[0] = low;
    if (left > 1) to[1] = high;
  }
}

/// Stores factor · acc, 16 rows a row tile from row0 on, of which `count` exist, in the fragments'
/// layout; acc's columns are those from `column` on of a row of `columns`. `head`: row 0.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void store_fragments(float* head, const Rows& rows, int row0, int count,
                                                int column, int columns,
                                                const float (&acc)[kRowTiles][kColumnTiles][4],
                                                float factor) {
  const int lane = lane_id();
  column += lane % 4 * 2;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + 16 * r + 8 * half + lane / 4;
      if (row >= count) continue;
      float* to = head + row * rows.stride_s + column;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        store_pair(to + 8 * c, rows.vectors, columns - column - 8 * c, factor * acc[r][c][2 * half],
                   factor * acc[r][c][2 * half + 1]);
      }
    }
  }
}

/// A shared tile for each term.
template <int kRows, int kCols>
struct SplitTile {
  using Term = SharedTile<__nv_bfloat16, kRows, kCols>;
  static constexpr int kBytes = kTerms * Term::kBytes;

  std::uint32_t base = 0;

  __device__ __forceinline__ Term term(int t) const { return {base + t * Term::kBytes}; }

  /// The columns from `column` on, a multiple of a panel's, as a tile of their own.
  __device__ __forceinline__ SplitTile columns_from(int column) const {
    return {term(0).columns_from(column).base};
  }
};

/// Operands B of all terms, as products.cuh has those of one.
template <int kRows, int kCols>
__device__ __forceinline__ SplitOperand read_split_b(const SplitTile<kRows, kCols>& tile, int row,
                                                     int n) {
  SplitOperand b;
#pragma unroll
  for (int t = 0; t < kTerms; ++t) read_b(b.terms[t], tile.term(t), row, n);
  return b;
}
template <int kRows, int kCols>
__device__ __forceinline__ SplitOperand read_split_b_transposed(const SplitTile<kRows, kCols>& tile,
                                                                int row, int k) {
  SplitOperand b;
#pragma unroll
  for (int t = 0; t < kTerms; ++t) read_b_transposed(b.terms[t], tile.term(t), row, k);
  return b;
}

enum class Operand { a, b };

/// acc += a · b for one k step of 16, the terms of operand kFirst in falling order: exchanging the
/// operands and kFirst gives the same bits. read(c) gives the two operands B of column tiles 2 c
/// and 2 c + 1. kWide pairs of column tiles are computed side by side: products of one accumulator
/// wait for each other.
template <int kWide, Operand kFirst = Operand::a, int kR, int kC, typename Read>
__device__ __forceinline__ void multiply_split(float (&acc)[kR][kC][4], const SplitOperand (&a)[kR],
                                               Read read) {
  constexpr int kPairs[][2] = {{2, 0}, {1, 1}, {0, 2}, {1, 0}, {0, 1}, {0, 0}};
  static_assert(kC % (2 * kWide) == 0);
#pragma unroll
  for (int first = 0; first < kC; first += 2 * kWide) {
    SplitOperand b[kWide];
    float sum[kR][2 * kWide][4];
#pragma unroll
    for (int w = 0; w < kWide; ++w) b[w] = read(first / 2 + w);
#pragma unroll
    for (int pair = 0; pair < 6; ++pair) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int c = 0; c < 2 * kWide; ++c) {
          const auto& left = a[r].terms[kPairs[pair][kFirst == Operand::a ? 0 : 1]];
          const auto& right = b[c / 2].terms[kPairs[pair][kFirst == Operand::a ? 1 : 0]];
          if (pair == 0) {
            ptx::mma_m16n8k16_fresh<__nv_bfloat16>(sum[r][c], left, right[c % 2 * 2],
                                                   right[c % 2 * 2 + 1]);
          } else {
            ptx::mma_m16n8k16<__nv_bfloat16>(sum[r][c], left, right[c % 2 * 2],
                                             right[c % 2 * 2 + 1]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int c = 0; c < 2 * kWide; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[r][first + c][e] += sum[r][c][e];
      }
    }
  }
}

}  // namespace tessera::cuda
