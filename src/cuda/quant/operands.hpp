// Q, K and V as quantised kernels read them: what lies where in the workspace.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::cuda {

/// Rows of a sequence are padded to whole tiles of so many: tiles of two sequences never overlap.
inline constexpr int kTileTokens = 128;
inline constexpr int kQueryWarp = 32;  ///< Queries that have eight scales, i % 8.
inline constexpr int kKeyGroup = 64;   ///< Keys that have four scales, j % 8 / 2.

/// In front of the statistics' counters: that of the quantise kernel's jobs, those of the attention
/// kernels, and from kFirstArrival on shares that have come (sm90/last_round.hpp).
inline constexpr int kFirstArrival = 16;
inline constexpr int kCounterInts = 2048;

/// Planes are [batch, heads]; packed problems have one of all sequences, each from its padded_begin
/// on.
struct QuantisedOperands {
  /// [batch, heads_q, rows_q, pitch], zero from head_dim on. Null: the attention kernel converts q.
  std::int8_t* q = nullptr;
  std::int8_t* k = nullptr;  ///< [batch, heads_kv, rows_kv, pitch]
  bool packed = false;       ///< Two 4-bit integers a byte in q and k, the first in its lower half.
  /// E4M3, [batch, heads_kv, head_dim_v, rows_kv]; of each 16 keys in the order 0 1 8 9 2 3 10 11 4
  /// 5 12 13 6 7 14 15, which is that of the first product's accumulators.
  std::uint8_t* v = nullptr;
  void* v_half = nullptr;     ///< Instead of v, 16 bits: [batch, heads_kv, rows_kv, v_pitch].
  float* q_scales = nullptr;  ///< [batch, heads_q, rows_q / 4], or [… rows_q].
  float* k_scales = nullptr;  ///< [batch, heads_kv, rows_kv / 16], or [… rows_kv].
  float* v_scales = nullptr;  ///< [sequence, heads_kv, head_dim_v]; null with v_half.
  float* v_means = nullptr;   ///< [sequence, heads_kv, head_dim_v]; null: nothing was subtracted.
  float* row_offsets = nullptr;  ///< [batch, heads_q, rows_q]: q · k̄ of each query; null: none.
  /// [batch, heads_q, offset_blocks, rows_kv]: q̄ · (k − k̄) of each key, for each block of queries
  /// or for all; null: none.
  float* key_offsets = nullptr;
  int rows_q = 0, rows_kv = 0;
  int pitch = 0;     ///< Bytes.
  int v_pitch = 0;   ///< Elements of v_half's rows, zero from head_dim_v on.
  int v_stride = 0;  ///< Of v_scales and v_means: head_dim_v, also if a kernel has a part of it.
  int offset_blocks = 1;
  bool token_scales = false;  ///< Every row has a scale of its own.
};

/// What only the quantise kernels read: statistics of channels, those of blocks of tokens and those
/// of whole sequences.
struct QuantiseScratch {
  float *q_sums = nullptr, *k_sums = nullptr, *v_sums = nullptr;  ///< [plane, block, channel]
  float *q_means = nullptr, *k_means = nullptr;  ///< [sequence, heads, channel], or q's of blocks.
  float *q_largest = nullptr, *k_largest = nullptr, *v_largest = nullptr;
  int* counters = nullptr;        ///< Of works, then of statistics; v_largest lies behind them.
  std::size_t cleared_bytes = 0;  ///< From there to the end of v_largest.
};

}  // namespace tessera::cuda
