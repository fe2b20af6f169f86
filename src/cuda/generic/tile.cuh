// The generic kernels' two products, on f32 tiles: 256 threads as 16 × 16, thread (ty, tx).
//
//   score product   acc[r][c] += Σ_d a[ty + 16 r][d] · b[tx + 16 c][d]       both streamed by d
//   row product     acc[r][e] += Σ_k w[ty + 16 r][k] · x[k][64 (e / 4) + 4 tx + e % 4]
//
// Operands come from global memory in chunks that fit any head dim, converted to f32 on the way;
// the next chunk is fetched while one is computed with. Every product begins and ends its use of
// the shared chunks between barriers of its own.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/score.cuh"

namespace tessera::cuda::generic {

inline constexpr int kThreads = 256;
inline constexpr int kSide = 16;        ///< Threads along either side of a tile.
inline constexpr int kInner = 64;       ///< Rows of the tile that is walked through.
inline constexpr int kScoreChunk = 32;  ///< Head dims of one step of a score product.
inline constexpr int kRowChunk = 64;    ///< Head dims of one step of a row product.
inline constexpr int kScorePitch =
    kScoreChunk + 4;  ///< Keeps float4 reads of 8 rows conflict-free.
inline constexpr int kRowPitch = kRowChunk + 4;

/// Rows of one head in global memory: row i begins at `rows` + i · stride, `count` of them exist.
template <typename T>
struct RowSource {
  const T* rows;
  std::int64_t stride;
  int count;
  int columns;
};

/// What a block keeps in shared memory.
template <int kOuter>
struct Scratch {
  float a[kOuter * kScorePitch];
  union {
    float b[kInner * kScorePitch];
    float x[kInner * kRowPitch];
  };
  float w[kOuter * kRowPitch];  ///< [kOuter][kInner], what a row product takes its weights from.
};

/// Rows [row0, row0 + kCount), columns [d0, d0 + kWidth) of a source on their way to shared memory,
/// in registers: fetched while the chunk before is computed with.
template <int kCount, int kWidth, int kPitch>
class Chunk {
 public:
  /// Zero where there is nothing, or where `listed` lacks the bit of a granule of 16 rows.
  template <typename T>
  __device__ __forceinline__ void fetch(const RowSource<T>& from, int row0, int d0,
                                        unsigned listed = ~0u) {
    const int column = threadIdx.x % kWidth;
    const int row = threadIdx.x / kWidth;
    const T* at = from.rows + (row0 + row) * from.stride + d0 + column;
    const int rows = d0 + column < from.columns ? from.count - row0 - row : 0;  // that are left
#pragma unroll
    for (int x = 0; x < kEach; ++x) {
      const int below = x * kRowsAtOnce;
      const bool exists = below < rows && (listed >> ((row + below) / kGranule) & 1u) != 0;
      values_[x] = exists ? to_float(at[below * from.stride]) : 0.0f;
    }
  }

  __device__ __forceinline__ void put(float* to) const {
    to += threadIdx.x / kWidth * kPitch + threadIdx.x % kWidth;
#pragma unroll
    for (int x = 0; x < kEach; ++x) to[x * kRowsAtOnce * kPitch] = values_[x];
  }

 private:
  static constexpr int kRowsAtOnce = kThreads / kWidth;
  static constexpr int kEach = kCount / kRowsAtOnce;
  float values_[kEach];
};

/// What a row product starts with.
using FirstRows = Chunk<kInner, kRowChunk, kRowPitch>;

__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/// The score product of rows [a0, a0 + 16 kR) of a with rows [b0, b0 + 16 kC) of b.
template <int kOuter, int kR, int kC, typename T>
__device__ __forceinline__ void score_product(float (&acc)[kR][kC], const RowSource<T>& a, int a0,
                                              const RowSource<T>& b, int b0, unsigned listed_b,
                                              Scratch<kOuter>& shared) {
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  Chunk<kR * kSide, kScoreChunk, kScorePitch> next_a;
  Chunk<kC * kSide, kScoreChunk, kScorePitch> next_b;
  next_a.fetch(a, a0, 0);
  next_b.fetch(b, b0, 0, listed_b);
#pragma unroll 1
  for (int d0 = 0; d0 < a.columns; d0 += kScoreChunk) {
    __syncthreads();
    next_a.put(shared.a);
    next_b.put(shared.b);
    __syncthreads();
    if (d0 + kScoreChunk < a.columns) {
      next_a.fetch(a, a0, d0 + kScoreChunk);
      next_b.fetch(b, b0, d0 + kScoreChunk, listed_b);
    }
#pragma unroll
    for (int d = 0; d < kScoreChunk; d += 4) {
      float4 av[kR], bv[kC];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        av[r] = *reinterpret_cast<const float4*>(&shared.a[(ty + kSide * r) * kScorePitch + d]);
      }
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        bv[c] = *reinterpret_cast<const float4*>(&shared.b[(tx + kSide * c) * kScorePitch + d]);
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int c = 0; c < kC; ++c) acc[r][c] = dot(av[r], bv[c], acc[r][c]);
      }
    }
  }
}

/// The row product of shared.w, which the block has just written, with rows [x0, x0 + 64) of x, of
/// which `next` has the first columns.
template <int kOuter, int kR, int kE, typename T>
__device__ __forceinline__ void row_product(float (&acc)[kR][kE], const RowSource<T>& x, int x0,
                                            unsigned listed, FirstRows& next,
                                            Scratch<kOuter>& shared) {
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
#pragma unroll
  for (int chunk = 0; chunk < kE / 4; ++chunk) {
    if (chunk * kRowChunk >= x.columns) break;
    __syncthreads();
    next.put(shared.x);
    __syncthreads();
    if ((chunk + 1) * kRowChunk < x.columns) next.fetch(x, x0, (chunk + 1) * kRowChunk, listed);
#pragma unroll 4
    for (int k = 0; k < kInner; k += 4) {
      float w[kR][4];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const float4 v =
            *reinterpret_cast<const float4*>(&shared.w[(ty + kSide * r) * kRowPitch + k]);
        w[r][0] = v.x, w[r][1] = v.y, w[r][2] = v.z, w[r][3] = v.w;
      }
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const float4 v =
            *reinterpret_cast<const float4*>(&shared.x[(k + step) * kRowPitch + 4 * tx]);
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          acc[r][4 * chunk + 0] = fmaf(w[r][step], v.x, acc[r][4 * chunk + 0]);
          acc[r][4 * chunk + 1] = fmaf(w[r][step], v.y, acc[r][4 * chunk + 1]);
          acc[r][4 * chunk + 2] = fmaf(w[r][step], v.z, acc[r][4 * chunk + 2]);
          acc[r][4 * chunk + 3] = fmaf(w[r][step], v.w, acc[r][4 * chunk + 3]);
        }
      }
    }
  }
}

/// Stores row `row` (r of this thread) of a row product's accumulator, times `factor`.
template <typename T, int kR, int kE>
__device__ __forceinline__ void store_row(T* row, int columns, const float (&acc)[kR][kE], int r,
                                          float factor) {
  const int tx = threadIdx.x % kSide;
#pragma unroll
  for (int e = 0; e < kE; ++e) {
    const int column = e / 4 * kRowChunk + 4 * tx + e % 4;
    if (column < columns) row[column] = from_float<T>(acc[r][e] * factor);
  }
}

/// Replaces every element of a score product by what visit(element, row, column) makes of it. The
/// elements go through the thread's own places of `memory`, [16 kR][64], so that the visit is
/// compiled once, in a loop: it is long, and unrolled it would take the registers of the products.
template <int kR, int kC, typename Visit>
__device__ __forceinline__ void through_memory(float* memory, float (&acc)[kR][kC], Visit visit) {
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) memory[(ty + kSide * r) * kRowPitch + tx + kSide * c] = acc[r][c];
  }
#pragma unroll 1
  for (int x = 0; x < kR * kC; ++x) {
    const int row = ty + kSide * (x / kC), column = tx + kSide * (x % kC);
    visit(memory[row * kRowPitch + column], row, column);
  }
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) acc[r][c] = memory[(ty + kSide * r) * kRowPitch + tx + kSide * c];
  }
}

/// Sum and maximum over the 16 threads that share a row of a score product.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int step = kSide / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
  for (int step = kSide / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

/// The rows of one head of q, k, v, … in one sequence, of which `count` may be read.
template <typename T>
__device__ __forceinline__ RowSource<T> source(const Rows& rows, int b, int h, int begin, int count,
                                               int columns) {
  return {row_of<T>(rows, b, h, begin), rows.stride_s, count, columns};
}

}  // namespace tessera::cuda::generic
