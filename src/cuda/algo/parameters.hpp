// What every CUDA kernel is given: the tensors as pointers and strides, the features as numbers.
// Plain data, built on the host (host/parameters.cpp), passed by value to kernels.
#pragma once

#include <cstdint>

#include "tessera/block_mask_view.hpp"
#include "tessera/tensor.hpp"

namespace tessera::cuda {

/// A window side without a bound. Positions stay below 2^30, so sums with it stay within int.
inline constexpr int kUnbounded = 1 << 30;
/// Longest sequence that kernels index with int.
inline constexpr std::int64_t kMaxSequence = std::int64_t{1} << 29;

/// Of the matrix of scores: whose rows a kernel's tiles are.
enum class Side { queries, keys };

/// q, k, v, o or a gradient of theirs: row (b, h, token) begins at
/// data + b · stride_b + h · stride_h + token · stride_s, its elements are adjacent. Packed tensors
/// have stride_b = 0 and count tokens across sequences.
struct Rows {
  void* data = nullptr;
  std::int64_t stride_b = 0, stride_h = 0, stride_s = 0;
  bool vectors = false;  ///< Every row is whole 16-byte vectors at addresses that allow them.
};

/// lse or d_lse: one float for each (b, h, token), as Rows.
struct RowScalars {
  float* data = nullptr;
  std::int64_t stride_b = 0, stride_h = 0, stride_s = 0;
};

/// bias, mask or d_bias: one element for each (b, h, i, j), adjacent along j. A broadcast dimension
/// has stride 0.
struct ScoreTensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t stride_b = 0, stride_h = 0, stride_i = 0;
};

/// One attention problem with its tensors. Indices (b, h, i, j): sequence, query head, query and
/// key within the sequence.
struct Parameters {
  Rows q, k, v, o;
  RowScalars lse;

  int batch = 0;
  int heads_q = 0, heads_kv = 0;
  int group = 1;              ///< heads_q / heads_kv.
  int seq_q = 0, seq_kv = 0;  ///< Per sequence; all tokens if packed.
  int head_dim = 0, head_dim_v = 0;
  /// Bounds on used lengths: packed sequences must not reach beyond bias, mask and block mask.
  int limit_q = 0, limit_kv = 0;

  bool varlen = false;
  const std::int32_t* cu_seqlens_q = nullptr;
  const std::int32_t* cu_seqlens_k = nullptr;
  const std::int32_t* q_lens = nullptr;  ///< Null: all rows are used.
  const std::int32_t* kv_lens = nullptr;

  bool bottom_right = true;
  int window_left = kUnbounded;   ///< Key j is visible from i + a − left …
  int window_right = kUnbounded;  ///< … to i + a + right; causal is right ≤ 0.

  float scale = 1;
  float softcap = 0;                    ///< 0: off.
  ScoreTensor bias;                     ///< data null: off.
  ScoreTensor mask;                     ///< data null: off. One byte each, 0 = masked.
  const float* alibi_slopes = nullptr;  ///< Null: off.
  std::int64_t alibi_stride_b = 0;
  const float* sink = nullptr;  ///< Null: off.
  BlockMaskView block_mask;     ///< row_offsets null: off.

  std::uint32_t dropout_threshold = 0;  ///< An element is dropped if its Philox word is below.
  float keep_scale = 1;                 ///< 1 / (1 − p).
  std::uint32_t dropout_key[2] = {0, 0};
};

/// What the backward pass has besides.
struct Gradients {
  Rows d_o;
  RowScalars d_lse;    ///< data null: zero.
  Rows d_q, d_k, d_v;  ///< data null: not wanted.
  ScoreTensor d_bias;
  std::int64_t d_bias_size[4] = {0, 0, 0, 0};
  float* d_sink = nullptr;
  /// Σ_d d_o · o − d_lse for each row, [batch, heads_q, seq_q] (packed: [heads_q, tokens]).
  RowScalars delta;
};

}  // namespace tessera::cuda
