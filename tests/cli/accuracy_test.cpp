// Accuracy of quantised attention as `tessera check --precision` measures it.
#include "check/accuracy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "check/distributions.hpp"
#include "cli/process.hpp"
#include "error.hpp"
#include "generate_case.hpp"

namespace tessera::cli {
namespace {

AttentionCase generated(Distribution distribution, bool bshd = false) {
  CaseShape shape;
  shape.dtype = DType::f16;
  shape.heads_q = shape.heads_kv = 2;
  shape.seq_q = shape.seq_kv = 160;
  shape.head_dim = shape.head_dim_v = 32;
  shape.bshd = bshd;
  AttentionCase c = generate_case(shape, {}, 3, 0, false);
  fill_tokens(distribution, 3, c);
  c.name = name_of(distribution);
  return c;
}

TEST(Accuracy, IsThatOfThePaperOnNormalData) {
  AccuracyMeter meter(generated(Distribution::normal), {});
  const Accuracy sage8 = meter.measure(Precision::sage8, {});
  EXPECT_EQ(sage8.rejection, "");
  EXPECT_NE(sage8.row, "");
  EXPECT_GT(sage8.all.cosine, 0.999);
  EXPECT_LT(sage8.all.relative_l1, 0.045);
  EXPECT_LE(sage8.worst_cosine, sage8.all.cosine);
  EXPECT_GE(sage8.worst_l1, sage8.all.relative_l1);
  Quantization half;
  half.pv = PvFormat::half;
  EXPECT_LT(meter.measure(Precision::sage8, half).all.relative_l1, 0.015);
  EXPECT_GT(meter.measure(Precision::sage4, {}).all.relative_l1, 2 * sage8.all.relative_l1);
}

TEST(Accuracy, ShowsWhatSmoothingIsWorth) {
  AccuracyMeter meter(generated(Distribution::biases), {});
  Quantization off;
  off.smooth_q = SmoothQ::none;
  off.smooth_k = Smoothing::off;
  EXPECT_GT(meter.measure(Precision::sage4, off).all.relative_l1,
            2 * meter.measure(Precision::sage4, {}).all.relative_l1);

  AccuracyMeter values(generated(Distribution::value_biases), {});
  Quantization smooth_v;
  smooth_v.smooth_v = Smoothing::on;
  EXPECT_GT(values.measure(Precision::sage8, {}).all.relative_l1,
            1.5 * values.measure(Precision::sage8, smooth_v).all.relative_l1);
}

TEST(Accuracy, OfTheWorstHeadInEveryLayout) {
  AttentionCase planes = generated(Distribution::normal);
  AttentionCase tokens = generated(Distribution::normal, true);
  for (std::int64_t h = 0; h < 2; ++h) {
    for (std::int64_t i = 0; i < 160; ++i) {
      for (std::int64_t d = 0; d < 32; ++d) {
        const std::int64_t from = (h * 160 + i) * 32 + d, to = (i * 2 + h) * 32 + d;
        // One head far harder than the other.
        const double factor = h == 1 ? 4 : 1;
        planes.q.set(from, factor * planes.q.at(from));
        tokens.q.set(to, planes.q.at(from));
        tokens.k.set(to, planes.k.at(from));
        tokens.v.set(to, planes.v.at(from));
      }
    }
  }
  const Accuracy a = AccuracyMeter(std::move(planes), {}).measure(Precision::sage4, {});
  const Accuracy b = AccuracyMeter(std::move(tokens), {}).measure(Precision::sage4, {});
  EXPECT_LT(a.worst_cosine, a.all.cosine - 1e-3);
  EXPECT_DOUBLE_EQ(a.worst_cosine, b.worst_cosine);
  EXPECT_DOUBLE_EQ(a.worst_l1, b.worst_l1);
}

TEST(Accuracy, RefusesWhatIsNotFinite) {
  AttentionCase c = generated(Distribution::normal);
  c.k.set(7, std::numeric_limits<double>::infinity());
  try {
    AccuracyMeter(std::move(c), {});
    FAIL() << "took an infinity";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "normal: element 7 of k is inf, expected finite numbers");
  }
}

TEST(Accuracy, SaysWhichRowRefuses) {
  AccuracyMeter meter(generated(Distribution::normal), {{}, "cpu_portable", nullptr});
  EXPECT_NE(meter.measure(Precision::sage8, {}).rejection, "");
}

std::int64_t lines_with(const std::string& text, const std::string& words) {
  std::int64_t count = 0;
  for (std::size_t at = 0; (at = text.find(words, at)) != std::string::npos; ++at) ++count;
  return count;
}

TEST(CheckPrecision, PrintsEveryDistributionInEveryScheme) {
  const test::Outcome outcome = test::run_tessera(
      {"check", "--precision", "sage8,sage4", "--heads", "1", "--seq", "40", "--head-dim", "16"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto distributions = static_cast<std::int64_t>(kDistributions.size());
  EXPECT_EQ(lines_with(outcome.out, "\nchannel outliers "), 24);
  for (const char* scheme :
       {"sage8, per thread, smooth K, FP8 PV", "sage8, per token, smooth K, FP8 PV",
        "sage8, per thread, not smoothed, FP8 PV", "sage4, per thread, smooth Q+K, FP8 PV",
        "sage4, per thread, smooth Q+K, 16-bit PV", "sage4, per thread, smooth K, FP8 PV"}) {
    EXPECT_EQ(lines_with(outcome.out, scheme), distributions) << scheme;
  }
}

TEST(CheckPrecision, TakesActivations) {
  const std::string file = std::string(TESSERA_DATA) + "/gpt_hd128.safetensors";
  const test::Outcome outcome =
      test::run_tessera({"check", "--precision", "sage8", "--heads", "1", "--seq", "40",
                         "--head-dim", "16", "--causal", "--pv", "fp8", "--activations", file});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(lines_with(outcome.out, "\ngpt_hd128  "), 1) << outcome.out;
}

TEST(CheckPrecision, TakesOneSchemeThatIsNamed) {
  const test::Outcome outcome =
      test::run_tessera({"check", "--precision", "sage4", "--heads", "1", "--seq", "40",
                         "--head-dim", "16", "--granularity", "warp", "--pv", "half"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(lines_with(outcome.out, "sage4, per warp, smooth Q+K, 16-bit PV"),
            static_cast<std::int64_t>(kDistributions.size()));
  EXPECT_EQ(lines_with(outcome.out, "sage4"), static_cast<std::int64_t>(kDistributions.size()));
}

}  // namespace
}  // namespace tessera::cli
