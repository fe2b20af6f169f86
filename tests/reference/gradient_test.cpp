// Every gradient of the reference against finite differences of its forward pass, in f64, for every
// feature alone and together. The function that is differentiated is
//   f = Σ d_o · o + Σ d_lse · lse.
#include <gtest/gtest.h>

#include <cmath>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

/// Σ d_o · o + Σ d_lse · lse over the rows that have anything to attend to.
double objective(const Case& c, const Workload& w) {
  Case forward_only = c;
  forward_only.backward = false;
  const Results r = make_wide_results(forward_only);
  const Attempt attempt = run_case(forward_only, w, r, "reference");
  EXPECT_TRUE(attempt.status.ok()) << attempt.status.message();
  double sum = 0;
  for (std::int64_t x = 0; x < r.o.count(); ++x) {
    if (r.o.get(x) != 0) sum += w.d_o.get(x) * r.o.get(x);
  }
  for (std::int64_t x = 0; x < w.d_lse.count(); ++x) {
    if (std::isfinite(r.lse.get(x))) sum += w.d_lse.get(x) * r.lse.get(x);
  }
  return sum;
}

/// Compares `gradient` with central differences with respect to every element of `input`. A step of
/// h leaves errors of the orders of h² from the function and 2^-53 / h from rounding it; the
/// derivatives and sums that multiply them are of order 10 to 100 here.
void check_gradient(const Case& c, const Workload& w, Tensor input, const Tensor& gradient,
                    const char* name) {
  const bool wide = input.dtype() == DType::f64;
  const double h = wide ? 0x1p-17 : 0x1p-12;
  const double tolerance = 100 * (h * h + 0x1p-53 / h) + (wide ? 0 : 0x1p-24);
  for (std::int64_t x = 0; x < input.count(); ++x) {
    const double at = input.get(x);
    if (!std::isfinite(at)) {  // never read, or −inf
      ASSERT_EQ(gradient.get(x), 0) << name << "[" << x << "] " << c.describe();
      continue;
    }
    input.set(x, at + h);
    const double above = objective(c, w);
    const double step_up = input.get(x) - at;
    input.set(x, at - h);
    const double below = objective(c, w);
    const double step_down = at - input.get(x);
    input.set(x, at);
    const double slope = (above - below) / (step_up + step_down);
    ASSERT_NEAR(gradient.get(x), slope, tolerance * (1 + std::abs(slope)))
        << name << "[" << x << "] " << c.describe();
  }
}

/// All gradients of a case. `widened` shares sink and lengths, and the view is of the same memory,
/// so perturbing a tensor of `wide` perturbs what the plan reads.
void check_gradients(Case c) {
  c.d_lse = true;
  const Workload wide = widened(make_workload(c));
  const Results r = make_wide_results(c);
  const Attempt attempt = run_case(c, wide, r, "reference");
  ASSERT_TRUE(attempt.status.ok()) << attempt.status.message();
  check_gradient(c, wide, wide.q, r.d_q, "d_q");
  check_gradient(c, wide, wide.k, r.d_k, "d_k");
  check_gradient(c, wide, wide.v, r.d_v, "d_v");
  if (c.bias) check_gradient(c, wide, wide.bias, r.d_bias, "d_bias");
  if (c.sink) check_gradient(c, wide, wide.sink, r.d_sink, "d_sink");
}

Case small() {
  Case c;
  c.batch = 2;
  c.heads_q = 2;
  c.heads_kv = 1;
  c.seq_q = 5;
  c.seq_kv = 7;
  c.head_dim = 4;
  c.head_dim_v = 3;
  return c;
}

TEST(ReferenceGradients, Plain) { check_gradients(small()); }

TEST(ReferenceGradients, Causal) {
  for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
    Case c = small();
    c.attention.causal = true;
    c.attention.alignment = alignment;
    check_gradients(c);
    std::swap(c.seq_q, c.seq_kv);  // bottom-right: rows without keys
    check_gradients(c);
  }
}

TEST(ReferenceGradients, Window) {
  Case c = small();
  c.attention.window = {2, 1};
  check_gradients(c);
}

TEST(ReferenceGradients, Softcap) {
  Case c = small();
  c.attention.softcap = 1.5;
  check_gradients(c);
}

TEST(ReferenceGradients, BiasOverEveryExtent) {
  for (int extents = 0; extents < 8; ++extents) {
    Case c = small();
    c.seq_q = 3;
    c.seq_kv = 4;
    c.bias = Extents{(extents & 1) != 0, (extents & 2) != 0, (extents & 4) != 0};
    c.bias_minus_infinity = extents % 2 == 0 ? 0.2 : 0;
    c.attention.softcap = 2;  // the bias is added after it
    check_gradients(c);
  }
}

TEST(ReferenceGradients, Alibi) {
  Case c = small();
  c.alibi_rank = 2;
  check_gradients(c);
}

TEST(ReferenceGradients, Sink) {
  Case c = small();
  c.sink = true;
  c.mask = Extents{};
  c.mask_empty_rows = 0.4;  // rows that have nothing but the sink
  check_gradients(c);
}

TEST(ReferenceGradients, Dropout) {
  Case c = small();
  c.attention.dropout_p = 0.4;
  check_gradients(c);
}

TEST(ReferenceGradients, Mask) {
  Case c = small();
  c.mask = Extents{true, false, true};
  c.mask_empty_rows = 0.3;
  check_gradients(c);
}

TEST(ReferenceGradients, Lengths) {
  Case c = small();
  c.q_lens = {3, 5};
  c.kv_lens = {7, 2};
  c.attention.causal = true;
  check_gradients(c);
}

TEST(ReferenceGradients, PackedSequences) {
  Case c = small();
  c.batch = 3;
  c.cu_seqlens_q = {0, 2, 2, 6};
  c.cu_seqlens_k = {0, 3, 5, 8};
  c.seq_q = 7;
  c.seq_kv = 10;
  c.bias = Extents{false, true, true};
  check_gradients(c);
}

TEST(ReferenceGradients, BlockMask) {
  Case c = small();
  c.seq_q = 18;
  c.seq_kv = 35;
  c.batch = 1;
  c.head_dim = c.head_dim_v = 2;
  c.blocks = BlockPattern{16, 16, false, true, 0.7, 0.5};
  check_gradients(c);
}

TEST(ReferenceGradients, ScaleOfOurOwn) {
  Case c = small();
  c.attention.scale = -0.7;
  check_gradients(c);
}

TEST(ReferenceGradients, EverythingAtOnce) {
  Case c = small();
  c.heads_q = 4;
  c.heads_kv = 2;
  c.attention.causal = true;
  c.attention.window = {4, -1};
  c.attention.softcap = 3;
  c.attention.dropout_p = 0.2;
  c.bias = Extents{false, true, true};
  c.bias_minus_infinity = 0.1;
  c.mask = Extents{true, false, true};
  c.alibi_rank = 1;
  c.sink = true;
  c.kv_lens = {6, 7};
  c.blocks = BlockPattern{16, 16, false, false, 1, 1};
  check_gradients(c);
}

}  // namespace
}  // namespace tessera::test
