// The gradients, one query at a time, with the softmax recomputed from the forward pass's lse:
//
//   p_j     = exp(s_j − lse)
//   delta   = Σ_d d_o · o                  (which is Σ_j p_j z_j (d_o · v_j))
//   d_s_j   = p_j (z_j (d_o · v_j) − delta + d_lse)
//   d_v_j  += p_j z_j d_o
//   d_q     = scale Σ_j d_s_j cap'_j k_j,   d_k_j += scale d_s_j cap'_j q
//   d_bias += d_s                           (added after the softcap, so without its slope cap')
//   d_sink += exp(sink − lse) (d_lse − delta)
//
// Each sum over several queries or heads is gathered by the one unit of work that owns its result,
// so units share nothing and any executor gives the same bits.
#include <algorithm>
#include <cmath>

#include "reference/elements.hpp"
#include "reference/head.hpp"
#include "reference/passes.hpp"

namespace tessera::reference {
namespace {

/// What the backward pass knows about one query before it looks at keys.
struct QueryGradient {
  double lse = -kInfinity;
  double d_lse = 0;
  double delta = 0;
};

/// The rows of doubles behind a Head's workspace.
struct Memory {
  double *d_o, *o, *row, *d_k, *d_v;

  Memory(const Problem& problem, double* memory)
      : d_o(memory + Head::doubles(problem)),
        o(d_o + problem.head_dim_v),
        row(o + problem.head_dim_v),
        d_k(row + std::max(problem.head_dim, problem.seq_kv)),
        d_v(d_k + problem.seq_kv * problem.head_dim) {}

  static std::size_t doubles(const Problem& problem) {
    return 2 * problem.head_dim_v + std::max(problem.head_dim, problem.seq_kv) +
           problem.seq_kv * (problem.head_dim + problem.head_dim_v);
  }
};

/// Loads d_o of query (b, h, token) into memory.d_o, and the rest.
QueryGradient query_gradient(const Problem& problem, const Arguments& arguments, std::int64_t b,
                             std::int64_t h, std::int64_t token, const Memory& memory) {
  const TensorView& o = arguments.outputs.o;
  const TensorView& lse = arguments.outputs.lse;
  const TensorView& d_o = arguments.d_outputs.d_o;
  const TensorView& d_lse = arguments.d_outputs.d_lse;
  load_row(d_o, row_offset(d_o, b, h, token), problem.head_dim_v, memory.d_o);
  load_row(o, row_offset(o, b, h, token), problem.head_dim_v, memory.o);
  QueryGradient g;
  g.lse = load(lse, lse_offset(lse, b, h, token));
  if (d_lse.present()) g.d_lse = load(d_lse, lse_offset(d_lse, b, h, token));
  g.delta = dot(memory.d_o, memory.o, problem.head_dim_v);
  return g;
}

/// d_q of query i into memory.row; its share of d_k and d_v onto memory.d_k and memory.d_v.
void differentiate(const Problem& problem, Head& head, std::int64_t i, const QueryGradient& g,
                   const Memory& memory) {
  const std::int64_t D = problem.head_dim;
  const std::int64_t Dv = problem.head_dim_v;
  double* d_q = memory.row;
  std::fill_n(d_q, D, 0.0);
  if (g.lse == -kInfinity) return;  // nothing to attend to
  head.score(i);
  for (std::int64_t j = 0; j < head.sequence().kv_len; ++j) {
    if (head.s(j) == -kInfinity) continue;
    const double p = std::exp(head.s(j) - g.lse);
    const double z = head.keep(i, j);
    const double d_p = z == 0 ? 0 : z * dot(memory.d_o, head.v(j), Dv);
    const double d_s = p * (d_p - g.delta + g.d_lse);
    const double d_qk = problem.scale * d_s * head.cap_slope(j);
    add_scaled(p * z, memory.d_o, Dv, memory.d_v + j * Dv);
    add_scaled(d_qk, head.k(j), D, d_q);
    add_scaled(d_qk, head.q(), D, memory.d_k + j * D);
  }
}

/// d_q of a key head's query heads, and d_k, d_v of its keys, in sequence b.
void key_head_gradients(const Problem& problem, const Arguments& arguments, std::int64_t b,
                        std::int64_t h_kv, double* workspace) {
  const std::int64_t D = problem.head_dim;
  const std::int64_t Dv = problem.head_dim_v;
  const InputGradients& out = arguments.d_inputs;
  const Sequence sequence = sequence_at(problem, arguments.inputs, b);
  const Memory memory(problem, workspace);
  std::fill_n(memory.d_k, sequence.kv_rows * D, 0.0);
  std::fill_n(memory.d_v, sequence.kv_rows * Dv, 0.0);

  Head head(problem, arguments.inputs, workspace);
  for (std::int64_t h = h_kv * problem.group(); h < (h_kv + 1) * problem.group(); ++h) {
    head.select(b, h);
    for (std::int64_t i = 0; i < sequence.q_rows; ++i) {
      const std::int64_t token = sequence.q_begin + i;
      QueryGradient g;
      if (i < sequence.q_len) g = query_gradient(problem, arguments, b, h, token, memory);
      differentiate(problem, head, i, g, memory);
      if (out.d_q.present()) store_row(out.d_q, row_offset(out.d_q, b, h, token), D, memory.row);
    }
  }
  for (std::int64_t j = 0; j < sequence.kv_rows; ++j) {
    const std::int64_t token = sequence.kv_begin + j;
    if (out.d_k.present()) {
      store_row(out.d_k, row_offset(out.d_k, b, h_kv, token), D, memory.d_k + j * D);
    }
    if (out.d_v.present()) {
      store_row(out.d_v, row_offset(out.d_v, b, h_kv, token), Dv, memory.d_v + j * Dv);
    }
  }
}

/// d_s of query i, added to memory.row.
void add_score_gradient(const Problem& problem, Head& head, std::int64_t i, const QueryGradient& g,
                        const Memory& memory) {
  if (g.lse == -kInfinity) return;
  head.score(i);
  for (std::int64_t j = 0; j < head.sequence().kv_len; ++j) {
    if (head.s(j) == -kInfinity) continue;
    const double p = std::exp(head.s(j) - g.lse);
    const double z = head.keep(i, j);
    const double d_p = z == 0 ? 0 : z * dot(memory.d_o, head.v(j), problem.head_dim_v);
    memory.row[j] += p * (d_p - g.delta + g.d_lse);
  }
}

/// Half-open range of the indices that a broadcast dimension's element stands for.
struct Range {
  std::int64_t begin, end;
};

Range behind(std::int64_t index, std::int64_t size, std::int64_t full_size) {
  return size == 1 ? Range{0, full_size} : Range{index, index + 1};
}

/// Row (b_bias, h_bias, i_bias) of d_bias: the sum of d_s over every row that read it.
void bias_row_gradient(const Problem& problem, const Arguments& arguments, std::int64_t b_bias,
                       std::int64_t h_bias, std::int64_t i_bias, Head& head, const Memory& memory) {
  const TensorView& d_bias = arguments.d_inputs.d_bias;
  std::fill_n(memory.row, problem.seq_kv, 0.0);
  const Range batch = behind(b_bias, d_bias.size[0], problem.batch);
  const Range heads = behind(h_bias, d_bias.size[1], problem.heads_q);
  for (std::int64_t b = batch.begin; b < batch.end; ++b) {
    for (std::int64_t h = heads.begin; h < heads.end; ++h) {
      head.select(b, h);
      const Range queries = behind(i_bias, d_bias.size[2], head.sequence().q_len);
      const std::int64_t end = std::min(queries.end, head.sequence().q_len);
      for (std::int64_t i = queries.begin; i < end; ++i) {
        const std::int64_t token = head.sequence().q_begin + i;
        const QueryGradient g = query_gradient(problem, arguments, b, h, token, memory);
        add_score_gradient(problem, head, i, g, memory);
      }
    }
  }
}

void bias_gradient(const Problem& problem, const Arguments& arguments) {
  const TensorView& d_bias = arguments.d_inputs.d_bias;
  const std::int64_t units = d_bias.size[0] * d_bias.size[1];
  for_each_unit(problem, arguments, units, backward_doubles(problem),
                [&](std::int64_t unit, double* workspace) {
                  const std::int64_t b = unit / d_bias.size[1];
                  const std::int64_t h = unit % d_bias.size[1];
                  const Memory memory(problem, workspace);
                  Head head(problem, arguments.inputs, workspace);
                  const std::int64_t in_use = std::min(problem.seq_kv, d_bias.size[3]);
                  const double zero = 0;
                  for (std::int64_t i = 0; i < d_bias.size[2]; ++i) {
                    bias_row_gradient(problem, arguments, b, h, i, head, memory);
                    const std::int64_t offset =
                        b * d_bias.stride[0] + h * d_bias.stride[1] + i * d_bias.stride[2];
                    store_row(d_bias, offset, in_use, memory.row);
                    for (std::int64_t j = in_use; j < d_bias.size[3]; ++j) {
                      store_row(d_bias, offset + j, 1, &zero);  // behind every sequence
                    }
                  }
                });
}

void sink_gradient(const Problem& problem, const Arguments& arguments) {
  const TensorView& d_sink = arguments.d_inputs.d_sink;
  for_each_unit(problem, arguments, problem.heads_q, backward_doubles(problem),
                [&](std::int64_t h, double* workspace) {
                  const Memory memory(problem, workspace);
                  const TensorView& sinks = arguments.inputs.sink;
                  const double sink = load(sinks, h * sinks.stride[0]);
                  double sum = 0;
                  for (std::int64_t b = 0; b < problem.batch; ++b) {
                    const Sequence sequence = sequence_at(problem, arguments.inputs, b);
                    for (std::int64_t i = 0; i < sequence.q_len; ++i) {
                      const std::int64_t token = sequence.q_begin + i;
                      const QueryGradient g =
                          query_gradient(problem, arguments, b, h, token, memory);
                      if (g.lse == -kInfinity) continue;
                      sum += std::exp(sink - g.lse) * (g.d_lse - g.delta);
                    }
                  }
                  store(d_sink, h * d_sink.stride[0], sum);
                });
}

}  // namespace

std::size_t backward_doubles(const Problem& problem) {
  return Head::doubles(problem) + Memory::doubles(problem);
}

void backward(const Problem& problem, const Arguments& arguments) {
  const InputGradients& out = arguments.d_inputs;
  if (out.d_q.present() || out.d_k.present() || out.d_v.present()) {
    const std::int64_t units = sequence_count(problem) * problem.heads_kv;
    for_each_unit(problem, arguments, units, backward_doubles(problem),
                  [&](std::int64_t unit, double* workspace) {
                    key_head_gradients(problem, arguments, unit / problem.heads_kv,
                                       unit % problem.heads_kv, workspace);
                  });
  }
  if (out.d_bias.present()) bias_gradient(problem, arguments);
  if (out.d_sink.present()) sink_gradient(problem, arguments);
}

}  // namespace tessera::reference
