// Products of one warp: accumulators in registers, operands in shared tiles or registers.
//
// An accumulator [16 · kR × 8 · kC] is float[kR][kC][4] (ptx/mma.cuh says which element is whose).
// Rounded to 16 bits it is an operand A [16 · kR × 8 · kC], std::uint32_t[kR][kC / 2][4].
#pragma once

#include "cuda/ptx/mma.cuh"
#include "cuda/tile/shared_tile.cuh"

namespace tessera::cuda {

/// Where a lane reads or writes in every 16 × 16 (or 8 × 8) part of a tile. The rest of an address
/// is the same for the whole warp: uniform registers and immediates, but for one `xor`.
template <typename Tile>
struct LaneOffset {
  std::uint32_t bytes;

  /// Of vector `vector` of row `row` in the part.
  __device__ __forceinline__ LaneOffset(int row, int vector, int word = 0) {
    const int swizzle = Tile::kPanel == 64 ? row % 8 : row / 2 % 4;
    bytes = row * kPitch + ((vector ^ swizzle) * 16) + word * 4;
  }

  /// Address in the part that begins at row `row`, a multiple of 8, and at vector `vector`, which
  /// has no bit in common with the lane's.
  __device__ __forceinline__ std::uint32_t in(const Tile& tile, int row, int vector) const {
    const int panel = vector / Tile::kPanelVectors;
    return (bytes ^ (vector % Tile::kPanelVectors * 16)) +
           (tile.base + (panel * Tile::kRows + row) * kPitch);
  }

 private:
  static constexpr int kPitch = Tile::kPanelVectors * 16;
};

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x % kWarpSize); }

/// The same, but what is made of it is made where it is used: not kept in registers from one step
/// of a loop to the next.
__device__ __forceinline__ unsigned thread_anew() {
  unsigned thread = threadIdx.x;
  ptx::make_opaque(thread);
  return thread;
}
__device__ __forceinline__ int lane_id_anew() {
  return static_cast<int>(thread_anew() % kWarpSize);
}

/// A [16 × 16]: rows [row, row + 16) of the tile, columns [16 · k, 16 · k + 16).
template <typename Tile>
__device__ __forceinline__ void read_a(std::uint32_t (&a)[4], const Tile& tile, int row, int k,
                                       int id = lane_id()) {
  const LaneOffset<Tile> lane(id % 16, id / 16);
  ptx::ldmatrix_x4(a, lane.in(tile, row, 2 * k));
}

/// A [16 × 16] = Tᵀ: its rows are columns [16 · m, 16 · m + 16) of the tile, its columns the rows
/// [row, row + 16).
template <typename Tile>
__device__ __forceinline__ void read_a_transposed(std::uint32_t (&a)[4], const Tile& tile, int row,
                                                  int m, int id = lane_id()) {
  const LaneOffset<Tile> lane(id % 8 + id / 16 * 8, id / 8 % 2);
  ptx::ldmatrix_x4_transposed(a, lane.in(tile, row, 2 * m));
}

/// kR of them side by side: columns of the tile from 16 · m on.
template <int kR, typename Tile>
__device__ __forceinline__ void read_transposed(std::uint32_t (&a)[kR][4], const Tile& tile,
                                                int row, int m, int id = lane_id()) {
#pragma unroll
  for (int r = 0; r < kR; ++r) read_a_transposed(a[r], tile, row, m + r, id);
}

/// Two operands B [16 × 8]: rows [row, row + 16) of the tile, columns [16 · n, 16 · n + 8) and the
/// 8 after them. b[0], b[1] is the first operand, b[2], b[3] the second.
template <typename Tile>
__device__ __forceinline__ void read_b(std::uint32_t (&b)[4], const Tile& tile, int row, int n,
                                       int id = lane_id()) {
  const LaneOffset<Tile> lane(id % 16, id / 16);
  ptx::ldmatrix_x4_transposed(b, lane.in(tile, row, 2 * n));
}

/// Two operands B [16 × 8] = Tᵀ: their columns are rows [row, row + 8) of the tile and the 8 after
/// them, their rows its columns [16 · k, 16 · k + 16).
template <typename Tile>
__device__ __forceinline__ void read_b_transposed(std::uint32_t (&b)[4], const Tile& tile, int row,
                                                  int k, int id = lane_id()) {
  const LaneOffset<Tile> lane(id % 8 + id / 16 * 8, id / 8 % 2);
  ptx::ldmatrix_x4(b, lane.in(tile, row, 2 * k));
}

/// acc += a · b for one k step of 16: b from rows [row, row + 16) of its tile and the kC · 8
/// columns from 16 · n on.
template <typename T, int kR, int kC, typename Tile>
__device__ __forceinline__ void multiply_step(float (&acc)[kR][kC][4],
                                              const std::uint32_t (&a)[kR][4], const Tile& b,
                                              int row, int n, int id = lane_id()) {
#pragma unroll
  for (int c = 0; c < kC / 2; ++c) {
    std::uint32_t fragment[4];
    read_b(fragment, b, row, n + c, id);
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      ptx::mma_m16n8k16<T>(acc[r][2 * c], a[r], fragment[0], fragment[1]);
      ptx::mma_m16n8k16<T>(acc[r][2 * c + 1], a[r], fragment[2], fragment[3]);
    }
  }
}

/// acc += A · Bᵀ for one k step of 16, columns [16 · k, 16 · k + 16) of both: rows [row_a, …) of a,
/// rows [row_b, …) of b.
template <typename T, int kR, int kC, typename TileA, typename TileB>
__device__ __forceinline__ void multiply_rows_step(float (&acc)[kR][kC][4], const TileA& a,
                                                   int row_a, const TileB& b, int row_b, int k,
                                                   int id = lane_id()) {
  std::uint32_t left[kR][4];
#pragma unroll
  for (int r = 0; r < kR; ++r) read_a(left[r], a, row_a + 16 * r, k, id);
#pragma unroll
  for (int c = 0; c < kC / 2; ++c) {
    std::uint32_t right[4];
    read_b_transposed(right, b, row_b + 16 * c, k, id);
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      ptx::mma_m16n8k16<T>(acc[r][2 * c], left[r], right[0], right[1]);
      ptx::mma_m16n8k16<T>(acc[r][2 * c + 1], left[r], right[2], right[3]);
    }
  }
}

/// acc += A · Bᵀ over whole rows.
template <typename T, int kR, int kC, typename TileA, typename TileB>
__device__ __forceinline__ void multiply_rows(float (&acc)[kR][kC][4], const TileA& a, int row_a,
                                              const TileB& b, int row_b, int id = lane_id()) {
#pragma unroll
  for (int k = 0; k < TileA::kCols / 16; ++k) {
    multiply_rows_step<T>(acc, a, row_a, b, row_b, k, id);
  }
}

/// acc += A · B, A in registers, B rows [row, row + 16 · kK) of b and columns from 16 · n on.
template <typename T, int kR, int kC, int kK, typename Tile>
__device__ __forceinline__ void multiply_registers(float (&acc)[kR][kC][4],
                                                   const std::uint32_t (&a)[kR][kK][4],
                                                   const Tile& b, int row, int n,
                                                   int id = lane_id()) {
#pragma unroll
  for (int k = 0; k < kK; ++k) {
    std::uint32_t left[kR][4];
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e) left[r][e] = a[r][k][e];
    }
    multiply_step<T>(acc, left, b, row + 16 * k, n, id);
  }
}

/// acc += A · B, A rows [row_a, …) of a and its kK · 16 columns from `column` on, B as above with
/// rows from `column` on.
template <int kK, typename T, int kR, int kC, typename TileA, typename TileB>
__device__ __forceinline__ void multiply_columns(float (&acc)[kR][kC][4], const TileA& a, int row_a,
                                                 int column, const TileB& b, int n,
                                                 int id = lane_id()) {
#pragma unroll
  for (int k = 0; k < kK; ++k) {
    std::uint32_t left[kR][4];
#pragma unroll
    for (int r = 0; r < kR; ++r) read_a(left[r], a, row_a + 16 * r, column / 16 + k, id);
    multiply_step<T>(acc, left, b, column + 16 * k, n, id);
  }
}

/// Writes an operand A into a tile at (row, column).
template <int kR, int kK, typename Tile>
__device__ __forceinline__ void store_operand(const Tile& tile, int row, int column,
                                              const std::uint32_t (&a)[kR][kK][4],
                                              int id = lane_id()) {
  const LaneOffset<Tile> lane(id / 4, 0, id % 4);
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int k = 0; k < kK; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        ptx::store_shared_4(lane.in(tile, row + 16 * r + e % 2 * 8, column / 8 + 2 * k + e / 2),
                            a[r][k][e]);
      }
    }
  }
}

/// Writes an accumulator, multiplied and rounded, into a tile at (row, column).
template <typename T, int kR, int kC, typename Tile>
__device__ __forceinline__ void store_accumulator(const Tile& tile, int row, int column,
                                                  const float (&acc)[kR][kC][4], float factor,
                                                  int id = lane_id()) {
  const LaneOffset<Tile> lane(id / 4, 0, id % 4);
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        ptx::store_shared_4(
            lane.in(tile, row + 16 * r + 8 * half, column / 8 + c),
            ptx::pack<T>(factor * acc[r][c][2 * half], factor * acc[r][c][2 * half + 1]));
      }
    }
  }
}

/// Writes a tile's rows to rows [row0, …) of a head, of which `count` rows of `columns` elements
/// exist. All kThreads threads of the block call it, after a barrier.
template <int kThreads, typename T, int kRows, int kCols>
__device__ __forceinline__ void store_tile(const SharedTile<T, kRows, kCols>& tile, T* rows,
                                           std::int64_t stride, bool vectors, int row0, int count,
                                           int columns) {
  using Tile = SharedTile<T, kRows, kCols>;
#pragma unroll 4
  for (int x = static_cast<int>(threadIdx.x); x < kRows * Tile::kRowVectors; x += kThreads) {
    const int row = x / Tile::kRowVectors;
    const int column = x % Tile::kRowVectors * Tile::kVector;
    if (row0 + row >= count || column >= columns) continue;
    std::uint32_t words[4];
    ptx::load_shared_16(words, tile.at(row, x % Tile::kRowVectors));
    T* to = rows + (row0 + row) * stride + column;
    if (vectors) {
      *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
    } else {
      const T* elements = reinterpret_cast<const T*>(words);
#pragma unroll
      for (int e = 0; e < Tile::kVector; ++e) {
        if (column + e < columns) to[e] = elements[e];
      }
    }
  }
}

}  // namespace tessera::cuda
