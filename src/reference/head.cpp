#include "reference/head.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "reference/elements.hpp"

namespace tessera::reference {

Sequence sequence_at(const Problem& problem, const Inputs& inputs, std::int64_t b) {
  if (b < problem.batch) return sequence_of(problem, inputs, b);
  const auto end = [b](const TensorView& cu_seqlens) {
    return static_cast<std::int64_t>(
        static_cast<const std::int32_t*>(cu_seqlens.data)[b * cu_seqlens.stride[0]]);
  };
  Sequence tail;
  tail.q_begin = end(inputs.cu_seqlens_q);
  tail.kv_begin = end(inputs.cu_seqlens_k);
  tail.q_rows = problem.seq_q - tail.q_begin;
  tail.kv_rows = problem.seq_kv - tail.kv_begin;
  return tail;
}

std::size_t Head::doubles(const Problem& problem) {
  const std::size_t per_key = problem.head_dim + problem.head_dim_v + 3;  // k, v; s, slope, bias
  return per_key * problem.seq_kv + problem.head_dim;
}

Head::Head(const Problem& problem, const Inputs& inputs, double* workspace)
    : problem_(problem),
      inputs_(inputs),
      dropout_(problem.dropout_p, inputs.seed, inputs.offset),
      k_(workspace),
      v_(k_ + problem.seq_kv * problem.head_dim),
      q_(v_ + problem.seq_kv * problem.head_dim_v),
      s_(q_ + problem.head_dim),
      cap_slope_(s_ + problem.seq_kv),
      bias_(cap_slope_ + problem.seq_kv) {}

void Head::select(std::int64_t b, std::int64_t h) {
  b_ = b;
  h_ = h;
  sequence_ = sequence_at(problem_, inputs_, b);
  sink_ = problem_.sink ? load(inputs_.sink, h * inputs_.sink.stride[0]) : -kInfinity;
  if (problem_.alibi && b < problem_.batch) {
    const TensorView& slopes = inputs_.alibi_slopes;
    slope_ = slopes.rank == 1 ? load(slopes, h * slopes.stride[0])
                              : load(slopes, b * slopes.stride[0] + h * slopes.stride[1]);
  }

  const std::int64_t h_kv = h / problem_.group();
  if (b == loaded_b_ && h_kv == loaded_h_kv_) return;
  loaded_b_ = b;
  loaded_h_kv_ = h_kv;
  const std::int64_t D = problem_.head_dim;
  const std::int64_t Dv = problem_.head_dim_v;
  for (std::int64_t j = 0; j < sequence_.kv_len; ++j) {
    const std::int64_t token = sequence_.kv_begin + j;
    load_row(inputs_.k, row_offset(inputs_.k, b, h_kv, token), D, k_ + j * D);
    load_row(inputs_.v, row_offset(inputs_.v, b, h_kv, token), Dv, v_ + j * Dv);
  }
}

bool Head::attends(std::int64_t i, std::int64_t j) const {
  const std::int64_t position = i + sequence_.shift;  // where query i stands on the key axis
  if (problem_.causal && j > position) return false;
  if (problem_.window.left >= 0 && j < position - problem_.window.left) return false;
  if (problem_.window.right >= 0 && j > position + problem_.window.right) return false;
  if (problem_.mask) {
    const TensorView& mask = inputs_.mask;
    const auto* row =
        static_cast<const std::uint8_t*>(mask.data) + broadcast_offset(mask, b_, h_, i);
    if (row[j] == 0) return false;
  }
  return !problem_.block_mask || block_mask_allows(i, j);
}

bool Head::block_mask_allows(std::int64_t i, std::int64_t j) const {
  const BlockMaskView& mask = *inputs_.block_mask;
  const std::int64_t b = mask.batch == 1 ? 0 : b_;
  const std::int64_t h = mask.heads == 1 ? 0 : h_;
  const std::int64_t row = (b * mask.heads + h) * mask.q_blocks + i / mask.block_q;
  const std::int32_t* begin = mask.columns + mask.row_offsets[row];
  const std::int32_t* end = mask.columns + mask.row_offsets[row + 1];
  const std::int32_t* listed = std::lower_bound(begin, end, j / mask.block_kv);
  if (listed == end || *listed != j / mask.block_kv) return false;

  const std::int64_t partial = mask.bits_index[listed - mask.columns];
  if (partial < 0) return true;  // a full block
  const std::int64_t row_in_block = i % mask.block_q;
  const std::int64_t column_in_block = j % mask.block_kv;
  const std::uint32_t word =
      mask.bits[(partial * mask.block_q + row_in_block) * mask.words_per_row() +
                column_in_block / 32];
  return (word >> (column_in_block % 32) & 1u) != 0;
}

void Head::score(std::int64_t i, const double* products) {
  const std::int64_t D = problem_.head_dim;
  load_row(inputs_.q, row_offset(inputs_.q, b_, h_, sequence_.q_begin + i), D, q_);
  if (problem_.bias) {
    load_row(inputs_.bias, broadcast_offset(inputs_.bias, b_, h_, i), sequence_.kv_len, bias_);
  }
  const double cap = problem_.softcap;
  for (std::int64_t j = 0; j < sequence_.kv_len; ++j) {
    // A key that is masked is skipped, not multiplied: whatever is in its memory must not matter.
    if (!attends(i, j) || (problem_.bias && bias_[j] == -kInfinity)) {
      s_[j] = -kInfinity;
      continue;
    }
    double s = problem_.scale * (products != nullptr ? products[j] : dot(q_, k(j), D));
    cap_slope_[j] = 1;
    if (cap > 0) {
      const double t = std::tanh(s / cap);
      s = cap * t;
      cap_slope_[j] = 1 - t * t;
    }
    if (problem_.bias) s += bias_[j];
    if (problem_.alibi) s -= slope_ * static_cast<double>(std::abs(i + sequence_.shift - j));
    s_[j] = s;
  }
}

double Head::keep(std::int64_t i, std::int64_t j) const {
  if (problem_.dropout_p == 0) return 1;
  return dropout_.kept(b_, h_, i, j) ? 1 / (1 - problem_.dropout_p) : 0;
}

}  // namespace tessera::reference
