#include "cuda/host/parameters.hpp"

#include <algorithm>

#include "core/philox.hpp"

namespace tessera::cuda {
namespace {

constexpr std::int64_t kVectorBytes = 16;

Rows rows_of(const TensorView& t) {
  if (!t.present()) return {};
  Rows rows;
  rows.data = t.data;
  rows.stride_b = t.rank == 3 ? 0 : t.stride[0];
  rows.stride_h = t.stride[1];
  rows.stride_s = t.rank == 3 ? t.stride[0] : t.stride[2];
  rows.vectors = reinterpret_cast<std::uintptr_t>(t.data) % kVectorBytes == 0;
  for (const std::int64_t count :
       {t.size[t.rank - 1], rows.stride_b, rows.stride_h, rows.stride_s}) {
    rows.vectors = rows.vectors && count * size_of(t.dtype) % kVectorBytes == 0;
  }
  return rows;
}

RowScalars row_scalars_of(const TensorView& t) {
  if (!t.present()) return {};
  auto* data = static_cast<float*>(t.data);
  if (t.rank == 2) return {data, 0, t.stride[0], t.stride[1]};
  return {data, t.stride[0], t.stride[1], t.stride[2]};
}

ScoreTensor score_tensor_of(const TensorView& t) {
  if (!t.present()) return {};
  const auto stride = [&t](int d) { return t.size[d] == 1 ? 0 : t.stride[d]; };
  return {t.data, t.dtype, stride(0), stride(1), stride(2)};
}

const std::int32_t* lengths_of(const TensorView& t) {
  return t.present() ? static_cast<const std::int32_t*>(t.data) : nullptr;
}

int window_side(std::int64_t bound) {
  return bound < 0 || bound > kMaxSequence ? kUnbounded : static_cast<int>(bound);
}

int limited(int limit, std::int64_t size) {
  return static_cast<int>(std::min<std::int64_t>(limit, size));
}

}  // namespace

Parameters make_parameters(const Problem& problem, const Arguments& arguments) {
  const Inputs& in = arguments.inputs;
  Parameters p;
  p.q = rows_of(in.q);
  p.k = rows_of(in.k);
  p.v = rows_of(in.v);
  p.o = rows_of(arguments.outputs.o);
  p.lse = row_scalars_of(arguments.outputs.lse);

  p.batch = static_cast<int>(problem.batch);
  p.heads_q = static_cast<int>(problem.heads_q);
  p.heads_kv = static_cast<int>(problem.heads_kv);
  p.group = static_cast<int>(problem.group());
  p.seq_q = p.limit_q = static_cast<int>(problem.seq_q);
  p.seq_kv = p.limit_kv = static_cast<int>(problem.seq_kv);
  p.head_dim = static_cast<int>(problem.head_dim);
  p.head_dim_v = static_cast<int>(problem.head_dim_v);

  p.varlen = problem.varlen;
  p.cu_seqlens_q = lengths_of(in.cu_seqlens_q);
  p.cu_seqlens_k = lengths_of(in.cu_seqlens_k);
  p.q_lens = lengths_of(in.q_lens);
  p.kv_lens = lengths_of(in.kv_lens);

  p.bottom_right = problem.alignment == Alignment::bottom_right;
  p.window_left = window_side(problem.window.left);
  p.window_right = window_side(problem.window.right);
  if (problem.causal) p.window_right = std::min(p.window_right, 0);

  p.scale = static_cast<float>(problem.scale);
  p.softcap = static_cast<float>(problem.softcap);
  p.bias = score_tensor_of(in.bias);
  p.mask = score_tensor_of(in.mask);
  for (const TensorView* t : {&in.bias, &in.mask}) {
    if (!t->present() || !problem.varlen) continue;
    if (t->size[2] != 1) p.limit_q = limited(p.limit_q, t->size[2]);
    p.limit_kv = limited(p.limit_kv, t->size[3]);
  }
  if (problem.alibi) {
    p.alibi_slopes = static_cast<const float*>(in.alibi_slopes.data);
    p.alibi_stride_b = in.alibi_slopes.rank == 2 ? in.alibi_slopes.stride[0] : 0;
  }
  if (problem.sink) p.sink = static_cast<const float*>(in.sink.data);
  if (problem.block_mask) {
    p.block_mask = *in.block_mask;
    p.limit_q = limited(p.limit_q, p.block_mask.seq_q);
    p.limit_kv = limited(p.limit_kv, p.block_mask.seq_kv);
  }

  const DropoutStream dropout(problem.dropout_p, in.seed, in.offset);
  p.dropout_threshold = dropout.threshold;
  p.keep_scale = dropout.keep_scale;
  p.dropout_key[0] = dropout.key[0];
  p.dropout_key[1] = dropout.key[1];
  return p;
}

std::size_t row_scalar_count(const Problem& problem) {
  return static_cast<std::size_t>(problem.heads_q) * problem.seq_q *
         (problem.varlen ? 1 : problem.batch);
}

RowScalars contiguous_row_scalars(const Problem& problem, float* data) {
  return {data, problem.varlen ? 0 : problem.heads_q * problem.seq_q, problem.seq_q, 1};
}

Gradients make_gradients(const Problem& problem, const Arguments& arguments, float* delta) {
  Gradients g;
  g.d_o = rows_of(arguments.d_outputs.d_o);
  g.d_lse = row_scalars_of(arguments.d_outputs.d_lse);
  g.d_q = rows_of(arguments.d_inputs.d_q);
  g.d_k = rows_of(arguments.d_inputs.d_k);
  g.d_v = rows_of(arguments.d_inputs.d_v);
  const TensorView& d_bias = arguments.d_inputs.d_bias;
  g.d_bias = score_tensor_of(d_bias);
  if (d_bias.present()) {
    for (int d = 0; d < 4; ++d) g.d_bias_size[d] = d_bias.size[d];
  }
  if (arguments.d_inputs.d_sink.present()) {
    g.d_sink = static_cast<float*>(arguments.d_inputs.d_sink.data);
  }
  g.delta = contiguous_row_scalars(problem, delta);
  return g;
}

}  // namespace tessera::cuda
