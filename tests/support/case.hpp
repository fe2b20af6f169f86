// A test case of the conformance suite: an attention problem with its features, and its tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/philox.hpp"
#include "support/tensor.hpp"
#include "tessera/attention.hpp"

namespace tessera::test {

/// Which dimensions of a bias or mask exist; the others are broadcast.
struct Extents {
  bool batch = true;
  bool heads = true;
  bool queries = true;
};

/// A random block mask: blocks exist with probability `density`, and of those `partial` have an
/// element mask of their own.
struct BlockPattern {
  std::int64_t block_q = 64;
  std::int64_t block_kv = 64;
  bool per_batch = false;
  bool per_head = false;
  double density = 0.5;
  double partial = 0.3;
};

enum class LayoutKind { contiguous, bshd, padded, reversed, packed_qkv, broadcast_kv };

struct Case {
  DType dtype = DType::f32;
  std::int64_t batch = 2, heads_q = 2, heads_kv = 2;
  std::int64_t seq_q = 64, seq_kv = 64;  ///< Token counts if cu_seqlens are given.
  std::int64_t head_dim = 64, head_dim_v = 64;
  Attention attention;
  std::optional<Extents> bias;
  bool bias_f32 = false;           ///< bias in f32 whatever q's dtype.
  double bias_minus_infinity = 0;  ///< Share of −inf elements.
  std::optional<Extents> mask;
  double mask_empty_rows = 0.1;  ///< Share of rows without any key.
  int alibi_rank = 0;            ///< 0: none.
  bool sink = false;
  std::vector<std::int32_t> q_lens, kv_lens, cu_seqlens_q, cu_seqlens_k;
  std::optional<BlockPattern> blocks;
  LayoutKind layout = LayoutKind::contiguous;
  double logits = 1;        ///< Rough magnitude of the scores' standard deviation.
  double channel_bias = 0;  ///< Spread of what is added to each channel of q, k and v.
  bool d_lse = false;
  bool backward = true;
  int threads = 0;  ///< As in PlanOptions: how many tasks the work is cut for.

  bool varlen() const { return !cu_seqlens_q.empty(); }
  bool bias_gradient() const { return backward && bias.has_value(); }
  double scale() const;
  /// Everything that differs from the default, on one line.
  std::string describe() const;
};

/// Where sequence b lies; written down independently of the library's own helper.
struct Span {
  std::int64_t q_begin = 0, kv_begin = 0, q_len = 0, kv_len = 0, shift = 0;
};
Span span_of(const Case& c, std::int64_t b);

/// Longest sequence of the problem.
std::int64_t longest_q(const Case& c);
std::int64_t longest_kv(const Case& c);

/// Whether the random block mask has element (i, j) of head h in sequence b.
bool block_pattern_allows(const Case& c, std::int64_t b, std::int64_t h, std::int64_t i,
                          std::int64_t j);

/// Whether key j of sequence b takes part at all: within the used length and, under a block mask,
/// in a block that is listed for some head of the group of h_kv.
bool key_takes_part(const Case& c, std::int64_t b, std::int64_t h_kv, std::int64_t j);

/// Row-major index of the first element that token `token` of head h has in q, k, v, o or a
/// gradient of theirs.
std::int64_t row_index(const Case& c, const Tensor& t, std::int64_t b, std::int64_t h,
                       std::int64_t token);

/// The tensors of a case. Whatever no row may read is NaN: gaps between rows, keys and queries
/// behind the used lengths, tokens of no sequence, key blocks that no query block visits.
struct Workload {
  Tensor q, k, v, bias, mask, alibi_slopes, sink;
  Tensor q_lens, kv_lens, cu_seqlens_q, cu_seqlens_k;
  Tensor d_o, d_lse;
  std::optional<BlockMask> block_mask;
  BlockMaskView block_view;

  Inputs inputs() const;
};

Workload make_workload(const Case& c);

/// One query head of one sequence: its masks and what is added to its scores, element by element
/// and written down independently of the library. i and j count from the sequence's first tokens.
class HeadRules {
 public:
  HeadRules(const Case& c, const Workload& w, std::int64_t b, std::int64_t h);

  const Span& span() const { return span_; }
  /// Whether every mask lets query i see key j; a bias of −inf aside.
  bool visible(std::int64_t i, std::int64_t j) const;
  /// Row-major index in a tensor of the bias's extents.
  std::int64_t bias_index(const Tensor& t, std::int64_t i, std::int64_t j) const;
  double bias(std::int64_t i, std::int64_t j) const;  ///< 0 without one.
  double slope() const { return slope_; }             ///< ALiBi's, 0 without.
  double distance(std::int64_t i, std::int64_t j) const;
  double sink() const { return sink_; }  ///< −inf without one.
  /// What a weight is multiplied by: 0 if dropout drops it, else 1 / (1 − p).
  double keep(std::int64_t i, std::int64_t j) const;

 private:
  const Case& c_;
  const Workload& w_;
  std::int64_t b_, h_;
  Span span_;
  DropoutStream dropout_;
  double slope_ = 0, sink_;
};

/// The same values, contiguous, as the f64 problem of the oracle. Shares the block mask.
Workload widened(const Workload& w);

/// What a row computes. Absent tensors were not asked for.
struct Results {
  Tensor o, lse, d_q, d_k, d_v, d_bias, d_sink;

  Outputs outputs() const { return {o.view(), lse.view()}; }
  InputGradients gradients() const {
    return {d_q.view(), d_k.view(), d_v.view(), d_bias.view(), d_sink.view()};
  }
};

/// Poisoned results in the case's layout, or contiguous ones in f64.
Results make_results(const Case& c);
Results make_wide_results(const Case& c);

}  // namespace tessera::test
