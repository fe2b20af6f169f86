// The reference against values worked out by hand, and against what attention must satisfy whatever
// its inputs are.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kTight = 1e-14;

/// One head with D = Dv = 1: q = (1, 2), k = (0, 1, −1), v = (1, 10, 100), scale 1.
struct Tiny {
  Attention attention;
  Tensor q{DType::f64, {1, 1, 2, 1}}, k{DType::f64, {1, 1, 3, 1}}, v{DType::f64, {1, 1, 3, 1}};
  Tensor o{DType::f64, {1, 1, 2, 1}}, lse{DType::f64, {1, 1, 2}};
  Inputs inputs;

  Tiny() {
    attention.scale = 1;
    const double keys[] = {0, 1, -1}, values[] = {1, 10, 100};
    for (int i = 0; i < 2; ++i) q.set(i, i + 1);
    for (int j = 0; j < 3; ++j) k.set(j, keys[j]);
    for (int j = 0; j < 3; ++j) v.set(j, values[j]);
    inputs.q = q.view();
    inputs.k = k.view();
    inputs.v = v.view();
  }

  void run() {
    PlanOptions options;
    options.implementation = "reference";
    const Status status = attention_forward(attention, inputs, {o.view(), lse.view()}, options);
    ASSERT_TRUE(status.ok()) << status.message();
  }
};

TEST(ReferenceValues, Softmax) {
  Tiny t;
  t.run();
  const double e = std::exp(1.0);
  for (int i = 0; i < 2; ++i) {
    const double a = std::pow(e, i + 1), l = 1 + a + 1 / a;
    EXPECT_NEAR(t.o.get(i), (1 + 10 * a + 100 / a) / l, 1e-12);
    EXPECT_NEAR(t.lse.get(i), std::log(l), kTight);
  }
}

TEST(ReferenceValues, CausalAlignments) {
  Tiny t;
  t.attention.causal = true;  // a = 1: the first query sees two keys
  t.run();
  EXPECT_NEAR(t.lse.get(0), std::log(1 + std::exp(1.0)), kTight);
  EXPECT_NEAR(t.lse.get(1), std::log(1 + std::exp(2.0) + std::exp(-2.0)), kTight);
  t.attention.alignment = Alignment::top_left;  // a = 0: it sees one
  t.run();
  EXPECT_EQ(t.o.get(0), 1);
  EXPECT_EQ(t.lse.get(0), 0);
  EXPECT_NEAR(t.lse.get(1), std::log(1 + std::exp(2.0)), kTight);
}

TEST(ReferenceValues, WindowIsInclusive) {
  Tiny t;
  t.attention.alignment = Alignment::top_left;
  t.attention.window = {0, 1};
  t.run();
  EXPECT_NEAR(t.lse.get(0), std::log(1 + std::exp(1.0)), kTight);               // keys 0, 1
  EXPECT_NEAR(t.lse.get(1), std::log(std::exp(2.0) + std::exp(-2.0)), kTight);  // keys 1, 2
}

TEST(ReferenceValues, OrderOfOperations) {
  // s = 2 tanh(q k / 2) + bias − slope |i + a − j|
  Tiny t;
  Tensor bias(DType::f64, {1, 1, 1, 3}), slopes(DType::f32, {1}),
      mask(DType::boolean, {1, 1, 2, 3});
  const double biases[] = {0.5, -1, 2};
  for (int j = 0; j < 3; ++j) bias.set(j, biases[j]);
  slopes.set(0, 0.25);
  mask.fill(1);
  mask.put({0, 0, 0, 2}, 0);
  t.attention.softcap = 2;
  t.inputs.bias = bias.view();
  t.inputs.alibi_slopes = slopes.view();
  t.inputs.mask = mask.view();
  t.run();
  const double s0 = 0.5 - 0.25 * 1;  // i = 0 stands at key 1
  const double s1 = 2 * std::tanh(0.5) - 1;
  EXPECT_NEAR(t.lse.get(0), std::log(std::exp(s0) + std::exp(s1)), kTight);
  EXPECT_NEAR(t.o.get(0), (std::exp(s0) + 10 * std::exp(s1)) / (std::exp(s0) + std::exp(s1)),
              1e-13);
}

TEST(ReferenceValues, SinkJoinsTheDenominatorOnly) {
  Tiny t;
  Tensor sink(DType::f32, {1});
  sink.set(0, 1.5);
  t.inputs.sink = sink.view();
  t.run();
  const double a = std::exp(1.0), l = 1 + a + 1 / a + std::exp(1.5);
  EXPECT_NEAR(t.o.get(0), (1 + 10 * a + 100 / a) / l, 1e-12);
  EXPECT_NEAR(t.lse.get(0), std::log(l), kTight);
}

TEST(ReferenceValues, NothingToAttendTo) {
  Tiny t;
  Tensor mask(DType::boolean, {1, 1, 1, 3}), sink(DType::f32, {1});
  mask.fill(0);
  sink.set(0, -0.75);
  t.inputs.mask = mask.view();
  t.run();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(t.o.get(i), 0);
    EXPECT_EQ(t.lse.get(i), -kInfinity);
  }
  t.inputs.sink = sink.view();
  t.run();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(t.o.get(i), 0);
    EXPECT_EQ(t.lse.get(i), -0.75);
  }
}

TEST(ReferenceValues, DropoutKeepsTheLse) {
  Tiny t;
  t.run();
  const double lse = t.lse.get(1);
  t.attention.dropout_p = 0.5;
  t.run();
  EXPECT_EQ(t.lse.get(1), lse);
  const double a = std::exp(2.0), l = 1 + a + 1 / a;
  const double terms[] = {2 / l, 20 * a / l, 200 / a / l};  // p v / (1 − 0.5)
  bool explained = false;
  for (int kept = 0; kept < 8; ++kept) {
    double sum = 0;
    for (int j = 0; j < 3; ++j) sum += (kept >> j & 1) * terms[j];
    explained = explained || std::abs(sum - t.o.get(1)) < 1e-12;
  }
  EXPECT_TRUE(explained) << t.o.get(1);
}

TEST(ReferenceValues, ScoresFarOutOfExpsRange) {
  Tiny t;
  t.attention.scale = 1e5;
  t.run();
  EXPECT_EQ(t.o.get(0), 10);
  EXPECT_EQ(t.lse.get(0), 1e5);
  EXPECT_EQ(t.lse.get(1), 2e5);
}

TEST(ReferenceValues, GradientsOfTwoKeys) {
  // p = softmax(q k): o = Σ p v, d_s_j = p_j (v_j − o) for d_o = 1.
  Tiny t;
  t.attention.alignment = Alignment::top_left;
  t.attention.causal = true;  // query 0 sees key 0; query 1 keys 0, 1
  t.run();
  Tensor d_o(DType::f64, {1, 1, 2, 1}), d_q(DType::f64, {1, 1, 2, 1}),
      d_k(DType::f64, {1, 1, 3, 1}), d_v(DType::f64, {1, 1, 3, 1});
  d_o.fill(1);
  PlanOptions options;
  options.implementation = "reference";
  InputGradients gradients;
  gradients.d_q = d_q.view();
  gradients.d_k = d_k.view();
  gradients.d_v = d_v.view();
  const Status status = attention_backward(t.attention, t.inputs, {t.o.view(), t.lse.view()},
                                           {d_o.view(), {}}, gradients, options);
  ASSERT_TRUE(status.ok()) << status.message();
  const double p1 = std::exp(2.0) / (1 + std::exp(2.0)), p0 = 1 - p1, o = p0 + 10 * p1;
  EXPECT_EQ(d_q.get(0), 0);
  EXPECT_NEAR(d_q.get(1), p1 * (10 - o), 1e-13);
  EXPECT_NEAR(d_k.get(0), 2 * p0 * (1 - o), 1e-13);
  EXPECT_NEAR(d_k.get(1), 2 * p1 * (10 - o), 1e-13);
  EXPECT_EQ(d_k.get(2), 0);
  EXPECT_NEAR(d_v.get(0), 1 + p0, kTight);
  EXPECT_NEAR(d_v.get(1), p1, kTight);
  EXPECT_EQ(d_v.get(2), 0);
}

}  // namespace
}  // namespace tessera::test
