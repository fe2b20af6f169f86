// The scalar model of quantised attention: where it must be exact, close, or NaN.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/case.hpp"
#include "support/conformance.hpp"

namespace tessera::test {
namespace {

Case quantised(Precision precision, const Quantization& pieces = {}) {
  Case c;
  c.backward = false;
  c.seq_q = 130;
  c.seq_kv = 150;
  c.attention.precision = precision;
  c.attention.quantization = pieces;
  return c;
}

Results run(const Case& c, const Workload& w) {
  const Results results = make_results(c);
  const Attempt attempt = run_case(c, w, results, "reference");
  EXPECT_TRUE(attempt.status.ok()) << attempt.status.message();
  return results;
}

double relative_l1(const Tensor& a, const Tensor& b) {
  double difference = 0, sum = 0;
  for (std::int64_t i = 0; i < a.count(); ++i) {
    difference += std::abs(a.get(i) - b.get(i));
    sum += std::abs(b.get(i));
  }
  return difference / sum;
}

TEST(Quantised, IsCloseToExactInEveryScheme) {
  for (Precision precision : {Precision::sage8, Precision::sage4}) {
    for (int g = 0; g <= 5; ++g) {
      for (int smooth_q = 1; smooth_q <= 3; ++smooth_q) {
        for (int bits = 0; bits < 8; ++bits) {
          Quantization pieces;
          pieces.granularity = static_cast<ScaleGranularity>(g);
          pieces.smooth_q = static_cast<SmoothQ>(smooth_q);
          pieces.smooth_k = bits & 1 ? Smoothing::on : Smoothing::off;
          pieces.smooth_v = bits & 2 ? Smoothing::on : Smoothing::off;
          pieces.pv = bits & 4 ? PvFormat::half : PvFormat::fp8;
          Case c = quantised(precision, pieces);
          c.heads_kv = 1;
          c.seq_q = 70;
          c.seq_kv = 70;
          c.attention.causal = bits & 1;
          const Workload w = make_workload(c);
          const Results results = run(c, w);
          const Results exact = oracle_results(c, w);
          const double bound = precision == Precision::sage8 ? 0.06 : 0.5;
          EXPECT_LT(relative_l1(results.o, exact.o), bound) << c.describe();
          EXPECT_LT(largest_difference(results.lse, exact.lse), bound * 2) << c.describe();
        }
      }
    }
  }
}

TEST(Quantised, IntegersThatFitTheirScaleGiveTheExactScores) {
  Quantization pieces;
  pieces.smooth_k = Smoothing::off;
  pieces.pv = PvFormat::half;
  pieces.granularity = ScaleGranularity::token;
  Case c = quantised(Precision::sage8, pieces);
  c.attention.scale = 1e-5;
  const Workload w = make_workload(c);
  for (const Tensor* t : {&w.q, &w.k}) {
    for (std::int64_t i = 0; i < t->count(); ++i) {
      const_cast<Tensor*>(t)->set(i, i % 64 == 0 ? 127 : static_cast<double>(i * 37 % 201 - 100));
    }
  }
  const Results results = run(c, w);
  EXPECT_LT(largest_difference(results.lse, oracle_results(c, w).lse), 1e-5);
}

TEST(Quantised, BiasesOfChannelsAreSmoothedAway) {
  Case c = quantised(Precision::sage4);
  const Workload w = make_workload(c);
  const Results plain = run(c, w);
  for (std::int64_t i = 0; i < w.k.count(); ++i) {
    const_cast<Tensor&>(w.k).set(i, w.k.get(i) + 4 * std::sin(static_cast<double>(i % 64)));
  }
  const Results shifted = run(c, w);
  // The same integers but for roundings of k itself.
  EXPECT_LT(relative_l1(shifted.o, plain.o), 0.02);
  const Results exact = oracle_results(c, w);
  EXPECT_LT(largest_difference(shifted.lse, exact.lse), 0.5);
}

TEST(Quantised, NaNAndInfinityComeThrough) {
  for (double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    for (int which = 0; which < 3; ++which) {
      for (Smoothing smooth : {Smoothing::off, Smoothing::on}) {
        Quantization pieces;
        pieces.smooth_k = pieces.smooth_v = smooth;
        Case c = quantised(Precision::sage8, pieces);
        const Workload w = make_workload(c);
        const_cast<Tensor&>(which == 0 ? w.q : which == 1 ? w.k : w.v).put({1, 1, 64, 5}, bad);
        const Results results = run(c, w);
        EXPECT_FALSE(std::isfinite(results.o.at({1, 1, 64, 5}))) << which;
        EXPECT_TRUE(std::isfinite(results.o.at({0, 1, 64, 5}))) << which;
      }
    }
  }
}

TEST(Quantised, ARowWithoutKeysIsZero) {
  Case c = quantised(Precision::sage8);
  c.seq_kv = 20;
  c.attention.causal = true;
  const Workload w = make_workload(c);
  const Results results = run(c, w);
  EXPECT_EQ(results.o.at({0, 0, 0, 0}), 0);
  EXPECT_EQ(results.lse.at({0, 0, 0}), -std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace tessera::test
