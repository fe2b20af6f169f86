// The scheme's arithmetic (quant/scheme.hpp) in device code, and how its kernels find their rows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/score.cuh"
#include "cuda/quant/padded.cuh"
#include "cuda/quant/passes.hpp"
#include "quant/scheme.hpp"

namespace tessera::cuda {

/// A group's scale and its inverse.
struct Scale {
  float scale, inverse;
};

__device__ __forceinline__ std::uint32_t magnitude_bits(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}

__device__ __forceinline__ Scale scale_of(std::uint32_t largest_magnitude, float levels) {
  constexpr std::uint32_t kInfinity = 0x7f800000u;
  if (largest_magnitude >= kInfinity) return {__uint_as_float(0x7fc00000u), 0.0f};
  const float magnitude =
      fmaxf(__uint_as_float(largest_magnitude), ::tessera::quant::kLeastMagnitude);
  return {__fdiv_rn(magnitude, levels), __fdiv_rn(levels, magnitude)};
}

/// Threads of blocks that a multiprocessor has to hold: fewer of those whose elements take twice
/// the registers.
template <typename T>
inline constexpr int kResidentThreads = sizeof(T) == 2 ? 768 : 512;

/// Four numbers, each times `inverse`, to the nearest integers, even at ties, as bytes. At 3 · 2²²
/// the units of an f32's last place are integers.
template <int kCount>
__device__ __forceinline__ std::uint32_t quantised(const float (&x)[kCount], int first,
                                                   float inverse) {
  constexpr float kIntegers = 12582912.0f;
  const auto bits = [&](int e) {
    return __float_as_uint(__fadd_rn(__fmul_rn(x[first + e], inverse), kIntegers));
  };
  const std::uint32_t low = __byte_perm(bits(0), bits(1), 0x0040);
  const std::uint32_t high = __byte_perm(bits(2), bits(3), 0x0040);
  return inverse == 0 ? 0 : __byte_perm(low, high, 0x5410);
}

/// Eight integers of at most 4 bits in one word, from two words of bytes.
__device__ __forceinline__ std::uint32_t packed_pairs(std::uint32_t low, std::uint32_t high) {
  const auto pairs = [](std::uint32_t bytes) {
    bytes &= 0x0f0f0f0fu;
    return bytes | bytes >> 4;
  };
  return __byte_perm(pairs(low), pairs(high), 0x6420);
}

/// Whether key j is in a block that some query block of a head of the group of h_kv lists.
__device__ inline bool key_listed(const Parameters& p, int b, int h_kv, int j) {
  const BlockMaskView& mask = p.block_mask;
  if (mask.row_offsets == nullptr) return true;
  const std::int64_t column = j / mask.block_kv;
  if (column >= mask.kv_blocks) return false;
  for (int h = h_kv * p.group; h < (h_kv + 1) * p.group; ++h) {
    const std::int64_t plane = (mask.batch == 1 ? 0 : b) * mask.heads + (mask.heads == 1 ? 0 : h);
    const std::int64_t* offset = mask.transposed_offsets + plane * mask.kv_blocks + column;
    if (offset[1] > offset[0]) return true;
  }
  return false;
}

/// Eight neighbouring elements of a row as they lie in memory.
template <typename T>
struct Eight {
  static constexpr int kVectors = static_cast<int>(sizeof(T)) / 2;
  uint4 vectors[kVectors];

  __device__ __forceinline__ float at(int e) const {
    return to_float(reinterpret_cast<const T*>(vectors)[e]);
  }
  /// Zeros unless they exist.
  __device__ __forceinline__ void load(const T* from, bool exist) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      vectors[v] = {0, 0, 0, 0};
      if (exist) vectors[v] = __ldg(reinterpret_cast<const uint4*>(from) + v);
    }
  }
  /// The first `count` of them; the others become zero.
  __device__ __forceinline__ void load_some(const T* from, int count) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      reinterpret_cast<T*>(vectors)[e] = e < count ? from[e] : from_float<T>(0);
    }
  }
};

/// A tile of kTileTokens rows of a source, and where it lies in the workspace.
struct TileRows {
  int b, h;
  int first;                    ///< First token of the sequence in its tensor.
  int begin;                    ///< The tile's first row within the sequence,
  int length;                   ///< of which so many are used.
  std::int64_t sequence_plane;  ///< Of [sequence, heads].
  std::int64_t plane;           ///< Of [batch, heads] in the workspace,
  int row;                      ///< and the tile's first row there.
};

/// Where sequence b lies.
__device__ inline TileRows rows_of_sequence(const Parameters& p, const Source& source, int b,
                                            int h) {
  const Sequence s = sequence_of(p, b);
  TileRows rows;
  rows.b = b;
  rows.h = h;
  rows.first = source.queries ? s.q_begin : s.kv_begin;
  rows.begin = 0;
  rows.length = source.queries ? s.q_len : s.kv_len;
  rows.sequence_plane = std::int64_t{b} * source.heads + h;
  rows.plane = p.varlen ? h : rows.sequence_plane;
  rows.row = p.varlen ? padded_begin(rows.first, b) : 0;
  return rows;
}

/// Used tokens of [begin, begin + count).
__device__ __forceinline__ int count_used(const Parameters& p, const Source& source,
                                          const TileRows& rows, int begin, int count) {
  const int end = min(begin + count, rows.length);
  if (source.queries || p.block_mask.row_offsets == nullptr) return max(end - begin, 0);
  int used = 0;
  for (int j = begin; j < end;) {
    const int next =
        (j / static_cast<int>(p.block_mask.block_kv) + 1) * static_cast<int>(p.block_mask.block_kv);
    if (key_listed(p, rows.b, rows.h, j)) used += min(next, end) - j;
    j = next;
  }
  return used;
}

/// The tile of block `x`; false: there is none. Whole warps call it.
__device__ inline bool locate_rows(const Parameters& p, const Source& source, int x,
                                   TileRows& rows) {
  const int seq = source.queries ? p.seq_q : p.seq_kv;
  const int whole = (seq + kTileTokens - 1) / kTileTokens;
  const int per_head = p.varlen ? whole + p.batch + 1 : whole * p.batch;
  if (x >= per_head * source.heads) return false;
  TileIndex tile;
  const int place = x % per_head;
  const bool found = source.queries ? locate_tile<Side::queries>(p, place, kTileTokens, tile)
                                    : locate_tile<Side::keys>(p, place, kTileTokens, tile);
  if (!found || tile.b >= p.batch) return false;
  rows = rows_of_sequence(p, source, tile.b, x / per_head);
  rows.begin = tile.begin;
  rows.row += tile.begin;
  return true;
}

/// How many blocks locate_rows needs.
inline std::int64_t tile_count(const Parameters& p, const Source& source) {
  return tiles_per_head(p, source.queries ? p.seq_q : p.seq_kv, kTileTokens) * source.heads;
}

/// Elements [column, column + 8) of kCount of a tile's rows, and which of them take part: the
/// others are not read. row(k) is the k-th within the sequence.
template <typename T, int kCount>
struct Tokens {
  Eight<T> x[kCount];
  unsigned used = 0;

  __device__ __forceinline__ bool has(int k) const { return (used >> k & 1) != 0; }

  template <typename Row>
  __device__ __forceinline__ void load(const Parameters& p, const Source& source,
                                       const TileRows& rows, int column, Row row) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) used |= row(k) < rows.length ? 1u << k : 0;
    if (!source.queries && p.block_mask.row_offsets != nullptr) {
#pragma unroll 1
      for (int k = 0; k < kCount; ++k) {
        if (has(k) && !key_listed(p, rows.b, rows.h, row(k))) used &= ~(1u << k);
      }
    }
    const T* from = row_of<const T>(source.rows, rows.b, rows.h, rows.first) + column;
    if (source.rows.vectors && column + 8 <= source.columns) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k].load(from + row(k) * source.rows.stride_s, has(k));
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        x[k].load_some(from + row(k) * source.rows.stride_s, has(k) ? source.columns - column : 0);
      }
    }
  }
};

/// What is subtracted from elements [column, column + 8): zeros for none, and behind the last.
__device__ __forceinline__ void load_means(float (&mean)[8], const float* means, int column,
                                           int columns) {
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    mean[e] = means != nullptr && column + e < columns ? means[column + e] : 0.0f;
  }
}

/// The means for a tile.
__device__ __forceinline__ const float* means_of(const Means& means, const Source& source,
                                                 const TileRows& rows) {
  if (means.data == nullptr) return nullptr;
  const std::int64_t at =
      means.of_blocks ? rows.plane * (source.padded_rows / kTileTokens) + rows.row / kTileTokens
                      : rows.sequence_plane;
  return means.data + at * source.columns;
}

/// Calls visit(T()) with the type of a source's elements.
template <typename Visit>
Status for_dtype(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::f16:
      return visit(__half());
    case DType::bf16:
      return visit(__nv_bfloat16());
    default:
      return visit(float());
  }
}

/// Calls visit(n) with the number of vectors of 8 elements that a row of `columns` has, rounded up
/// to one of three.
template <typename Visit>
Status for_chunks(int columns, Visit visit) {
  if (columns <= 64) return visit(std::integral_constant<int, 8>());
  if (columns <= 128) return visit(std::integral_constant<int, 16>());
  return visit(std::integral_constant<int, 32>());
}

}  // namespace tessera::cuda
