// O = dropout(softmax(S)) V, one query at a time:
//
//   m   = max_j s_j                     (the sink counts as one more score, without a value)
//   l   = Σ_j exp(s_j − m)
//   lse = m + log l
//   p_j = exp(s_j − m) / l,   o = Σ_j p_j z_j v_j
//
// Subtracting the maximum changes nothing but keeps exp in range.
#include <algorithm>
#include <cmath>

#include "reference/elements.hpp"
#include "reference/head.hpp"
#include "reference/passes.hpp"

namespace tessera::reference {
namespace {

/// The output row of query i, and its lse.
double attend(const Problem& problem, Head& head, std::int64_t i, double* o) {
  const std::int64_t kv_len = head.sequence().kv_len;
  std::fill_n(o, problem.head_dim_v, 0.0);
  head.score(i);

  double m = head.sink();
  for (std::int64_t j = 0; j < kv_len; ++j) m = std::max(m, head.s(j));
  if (m == -kInfinity) return -kInfinity;  // nothing to attend to

  double l = std::exp(head.sink() - m);
  for (std::int64_t j = 0; j < kv_len; ++j) l += std::exp(head.s(j) - m);

  for (std::int64_t j = 0; j < kv_len; ++j) {
    if (head.s(j) == -kInfinity) continue;
    const double z = head.keep(i, j);
    if (z == 0) continue;
    const double p = std::exp(head.s(j) - m) / l;
    add_scaled(p * z, head.v(j), problem.head_dim_v, o);
  }
  return m + std::log(l);
}

}  // namespace

std::size_t forward_doubles(const Problem& problem) {
  return Head::doubles(problem) + problem.head_dim_v;
}

void forward(const Problem& problem, const Arguments& arguments) {
  const TensorView& out = arguments.outputs.o;
  const TensorView& out_lse = arguments.outputs.lse;
  const std::int64_t units = sequence_count(problem) * problem.heads_q;
  for_each_unit(problem, arguments, units, forward_doubles(problem),
                [&](std::int64_t unit, double* memory) {
                  const std::int64_t b = unit / problem.heads_q;
                  const std::int64_t h = unit % problem.heads_q;
                  double* o = memory + Head::doubles(problem);
                  Head head(problem, arguments.inputs, memory);
                  head.select(b, h);
                  for (std::int64_t i = 0; i < head.sequence().q_rows; ++i) {
                    double lse = -kInfinity;
                    if (i < head.sequence().q_len) {
                      lse = attend(problem, head, i, o);
                    } else {
                      std::fill_n(o, problem.head_dim_v, 0.0);
                    }
                    const std::int64_t token = head.sequence().q_begin + i;
                    store_row(out, row_offset(out, b, h, token), problem.head_dim_v, o);
                    if (out_lse.present()) store(out_lse, lse_offset(out_lse, b, h, token), lse);
                  }
                });
}

}  // namespace tessera::reference
