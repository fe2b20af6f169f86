// Sequences and their tiles, as device code sees them.
#pragma once

#include "cuda/algo/parameters.hpp"

namespace tessera::cuda {

inline constexpr int kWarpSize = 32;

__device__ __forceinline__ int clamp_to(int x, int low, int high) { return min(max(x, low), high); }

/// One sequence; index `batch` of a packed problem stands for the tokens behind the last sequence,
/// of which none is used. Whatever the length tensors hold, rows stay within the tensors.
struct Sequence {
  int q_begin = 0, kv_begin = 0;  ///< First token (packed), else 0.
  int q_rows = 0, kv_rows = 0;    ///< Rows that exist.
  int q_len = 0, kv_len = 0;      ///< Rows that are used.
  int shift = 0;                  ///< a: query i stands at key position i + a.
};

__device__ inline Sequence sequence_of(const Parameters& p, int b) {
  Sequence s;
  s.q_rows = p.seq_q;
  s.kv_rows = p.seq_kv;
  const bool tail = b >= p.batch;
  if (p.varlen) {
    s.q_begin = clamp_to(p.cu_seqlens_q[b], 0, p.seq_q);
    s.kv_begin = clamp_to(p.cu_seqlens_k[b], 0, p.seq_kv);
    const int q_end = tail ? p.seq_q : p.cu_seqlens_q[b + 1];
    const int kv_end = tail ? p.seq_kv : p.cu_seqlens_k[b + 1];
    s.q_rows = clamp_to(q_end, s.q_begin, p.seq_q) - s.q_begin;
    s.kv_rows = clamp_to(kv_end, s.kv_begin, p.seq_kv) - s.kv_begin;
  }
  if (tail) return s;
  s.q_len = min(s.q_rows, p.limit_q);
  s.kv_len = min(s.kv_rows, p.limit_kv);
  if (p.q_lens != nullptr) s.q_len = clamp_to(p.q_lens[b], 0, s.q_len);
  if (p.kv_lens != nullptr) s.kv_len = clamp_to(p.kv_lens[b], 0, s.kv_len);
  s.shift = p.bottom_right ? s.kv_len - s.q_len : 0;
  return s;
}

/// A tile of one head's rows: queries (forward) or keys (backward).
struct TileIndex {
  int b = 0;
  int h = 0;
  int begin = 0;  ///< First row within the sequence.
};

/// How many tiles of `rows` rows a grid needs for each head. In a packed problem every sequence,
/// and the tokens behind the last, may end in a tile that is not full.
inline std::int64_t tiles_per_head(const Parameters& p, int seq, int rows) {
  const std::int64_t whole = (static_cast<std::int64_t>(seq) + rows - 1) / rows;
  return p.varlen ? whole + p.batch + 1 : whole * p.batch;
}

/// Tile `x` of tiles_per_head tiles: its sequence and first row; false if there is no such tile.
/// Within a sequence tiles come last first: under a causal mask these have the most work on the
/// query side, and starting them early evens out the end of the grid. Called by whole warps.
template <Side kSide>
__device__ inline bool locate_tile(const Parameters& p, int x, int rows, TileIndex& tile) {
  const int seq = kSide == Side::queries ? p.seq_q : p.seq_kv;
  if (!p.varlen) {
    const int per_sequence = (seq + rows - 1) / rows;
    tile.b = x / per_sequence;
    const int local = x - tile.b * per_sequence;
    tile.begin = (kSide == Side::queries ? per_sequence - 1 - local : local) * rows;
    return true;
  }
  const int lane = threadIdx.x % kWarpSize;
  int before = 0;  // tiles of the sequences before this warp's 32
  for (int b0 = 0; b0 <= p.batch; b0 += kWarpSize) {
    int own = 0;
    if (b0 + lane <= p.batch) {
      const Sequence s = sequence_of(p, b0 + lane);
      own = ((kSide == Side::queries ? s.q_rows : s.kv_rows) + rows - 1) / rows;
    }
    int through = own;  // tiles up to and with this lane's sequence
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int other = __shfl_up_sync(~0u, through, step);
      if (lane >= step) through += other;
    }
    const unsigned found = __ballot_sync(~0u, before + through > x);
    if (found != 0) {
      const int at = __ffs(found) - 1;
      tile.b = b0 + at;
      const int tiles = __shfl_sync(~0u, own, at);
      const int local = x - before - (__shfl_sync(~0u, through, at) - tiles);
      tile.begin = (kSide == Side::queries ? tiles - 1 - local : local) * rows;
      return true;
    }
    before += __shfl_sync(~0u, through, kWarpSize - 1);
  }
  return false;
}

template <typename T>
__device__ __forceinline__ T* row_of(const Rows& rows, int b, int h, int token) {
  return static_cast<T*>(rows.data) + b * rows.stride_b + h * rows.stride_h + token * rows.stride_s;
}

__device__ __forceinline__ float* scalar_of(const RowScalars& rows, int b, int h, int token) {
  return rows.data + b * rows.stride_b + h * rows.stride_h + token * rows.stride_s;
}

/// Half-open.
struct Range {
  int begin = 0, end = 0;
  __device__ bool empty() const { return begin >= end; }
};

/// Keys that queries [begin, end) see together through causal mask, window and used length.
__device__ __forceinline__ Range visible_keys(const Parameters& p, const Sequence& s, int begin,
                                              int end) {
  Range keys{0, s.kv_len};
  if (p.window_left < kUnbounded) keys.begin = max(0, begin + s.shift - p.window_left);
  if (p.window_right < kUnbounded) keys.end = min(s.kv_len, end + s.shift + p.window_right);
  return keys;
}

/// Keys that every one of queries [begin, end) sees.
__device__ __forceinline__ Range common_keys(const Parameters& p, const Sequence& s, int begin,
                                             int end) {
  return {max(0, end - 1 + s.shift - p.window_left),
          min(s.kv_len, begin + s.shift + p.window_right + 1)};
}

/// Used queries that see any of keys [begin, end).
__device__ __forceinline__ Range seeing_queries(const Parameters& p, const Sequence& s, int begin,
                                                int end) {
  Range queries{0, s.q_len};
  if (p.window_right < kUnbounded) queries.begin = max(0, begin - s.shift - p.window_right);
  if (p.window_left < kUnbounded) queries.end = min(s.q_len, end - s.shift + p.window_left);
  return queries;
}

/// Whether every query of [q0, q1) sees every key of [k0, k1) as far as causal mask, window and
/// used lengths go.
__device__ __forceinline__ bool all_visible(const Parameters& p, const Sequence& s, Range q,
                                            Range k) {
  return k.end <= s.kv_len && q.end <= s.q_len &&
         (p.window_right == kUnbounded || k.end - 1 <= q.begin + s.shift + p.window_right) &&
         (p.window_left == kUnbounded || k.begin >= q.end - 1 + s.shift - p.window_left);
}

/// Whether query i sees key j through causal mask, window and used lengths.
__device__ __forceinline__ bool visible(const Parameters& p, const Sequence& s, int i, int j) {
  const int position = i + s.shift;
  return i < s.q_len && j < s.kv_len && j <= position + p.window_right &&
         j >= position - p.window_left;
}

}  // namespace tessera::cuda
