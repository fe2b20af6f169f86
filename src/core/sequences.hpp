// Where each sequence of a problem lies in its tensors, and which keys its positional masks leave.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.hpp"
#include "core/registry.hpp"

namespace tessera {

/// One sequence of a batched or packed problem. Lengths are the used ones.
struct Sequence {
  std::int64_t q_begin = 0;   ///< First row along the token axis (packed), else 0.
  std::int64_t kv_begin = 0;  ///< First key along the token axis (packed), else 0.
  std::int64_t q_rows = 0;    ///< Rows that exist (allocated), of which q_len are used.
  std::int64_t kv_rows = 0;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  std::int64_t shift = 0;  ///< a: query i stands at key position i + a.
};

/// Sequence b of a validated problem; the length tensors are read on the host.
inline Sequence sequence_of(const Problem& problem, const Inputs& inputs, std::int64_t b) {
  const auto at = [](const TensorView& t, std::int64_t i) {
    return static_cast<std::int64_t>(static_cast<const std::int32_t*>(t.data)[i * t.stride[0]]);
  };
  Sequence s;
  if (problem.varlen) {
    s.q_begin = at(inputs.cu_seqlens_q, b);
    s.q_rows = at(inputs.cu_seqlens_q, b + 1) - s.q_begin;
    s.kv_begin = at(inputs.cu_seqlens_k, b);
    s.kv_rows = at(inputs.cu_seqlens_k, b + 1) - s.kv_begin;
  } else {
    s.q_rows = problem.seq_q;
    s.kv_rows = problem.seq_kv;
  }
  s.q_len = problem.q_lens ? at(inputs.q_lens, b) : s.q_rows;
  s.kv_len = problem.kv_lens ? at(inputs.kv_lens, b) : s.kv_rows;
  s.shift = problem.alignment == Alignment::bottom_right ? s.kv_len - s.q_len : 0;
  return s;
}

/// Half-open range of keys.
struct KeyRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool empty() const { return begin >= end; }
};

/// The keys that causal mask, window and used length leave to query i: always one range.
inline KeyRange visible_keys(const Problem& problem, const Sequence& s, std::int64_t i) {
  KeyRange r{0, s.kv_len};
  const std::int64_t position = i + s.shift;
  if (problem.window.left >= 0) r.begin = std::max(r.begin, position - problem.window.left);
  if (problem.window.right >= 0) r.end = std::min(r.end, position + problem.window.right + 1);
  if (problem.causal) r.end = std::min(r.end, position + 1);
  return r;
}

}  // namespace tessera
