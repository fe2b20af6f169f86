// Scores at the edges of what f32 and the 16-bit dtypes can hold, and exactness where mathematics
// gives it.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Numerics, ExtremeLogits) {
  int step = 0;
  for (double logits : {30.0, 300.0, 2500.0}) {  // the largest of 10⁴ normals is about 4 deviations
    for (DType dtype : kDtypes) {
      for (int feature = 0; feature < 4; ++feature) {
        Case c;
        c.dtype = dtype;
        c.logits = logits;
        c.seq_q = 65;
        c.seq_kv = 130;
        c.head_dim = c.head_dim_v = 64;
        c.d_lse = step++ % 2 == 0;
        c.attention.causal = feature == 1;
        if (feature == 2) c.sink = true;
        if (feature == 3) c.attention.softcap = 50;
        check_case(c);
      }
    }
  }
}

/// One head whose scores are given: q = 1, k = score, D = 1.
struct GivenScores {
  Case c;
  Workload w;

  GivenScores(DType dtype, const std::vector<double>& scores) {
    c.dtype = dtype;
    c.batch = c.heads_q = c.heads_kv = c.seq_q = 1;
    c.seq_kv = static_cast<std::int64_t>(scores.size());
    c.head_dim = 1;
    c.head_dim_v = 8;
    c.attention.scale = 1;
    c.backward = false;
    w = make_workload(c);
    w.q.fill(1);
    for (std::int64_t j = 0; j < c.seq_kv; ++j) w.k.set(j, scores[j]);
  }
};

/// Two keys with scores 0 and x, V the identity: o = softmax(0, x), one query for each x. Half a
/// rounding each for x · log₂ e and its exponential's argument, at the magnitude of x; and a few
/// for the exponential itself and the division.
TEST(Numerics, TheExponentialIsGoodToAFewRoundings) {
  Case c;
  c.batch = c.heads_q = c.heads_kv = 1;
  c.seq_q = 40001;
  c.seq_kv = c.head_dim_v = 2;
  c.head_dim = 1;
  c.attention.scale = 1;
  c.backward = false;
  Workload w = make_workload(c);
  for (std::int64_t i = 0; i < c.seq_q; ++i) w.q.set(i, (static_cast<double>(i) - 20000) / 1000);
  for (std::int64_t j = 0; j < 2; ++j) {
    w.k.set(j, static_cast<double>(j));
    for (std::int64_t d = 0; d < 2; ++d) w.v.set(2 * j + d, j == d ? 1 : 0);
  }
  for (const std::string& row : rows_under_test(c)) {
    const Results r = make_results(c);
    ASSERT_TRUE(run_case(c, w, r, row).status.ok());
    for (std::int64_t i = 0; i < c.seq_q; ++i) {
      const double x = w.q.get(i);
      const double roundings = 0x1p-24 * (2 * std::abs(x) + 5);
      for (int d = 0; d < 2; ++d) {
        const double p = 1 / (1 + std::exp(d == 0 ? x : -x));
        ASSERT_NEAR(r.o.get(2 * i + d), p, roundings * p) << row << ", score " << x;
      }
    }
  }
}

/// With one key the LSE is its score.
TEST(Numerics, TheSoftcapIsGoodToAFewRoundings) {
  for (double cap : {0.5, 1.0, 30.0}) {
    Case c;
    c.batch = c.heads_q = c.heads_kv = 1;
    c.seq_q = 20001;
    c.seq_kv = c.head_dim = c.head_dim_v = 1;
    c.attention.scale = 1;
    c.attention.softcap = cap;
    c.backward = false;
    Workload w = make_workload(c);
    w.k.fill(1);
    for (std::int64_t i = 0; i < c.seq_q; ++i) {
      w.q.set(i, cap * (static_cast<double>(i) - 10000) / 1000);
    }
    for (const std::string& row : rows_under_test(c)) {
      const Results r = make_results(c);
      ASSERT_TRUE(run_case(c, w, r, row).status.ok());
      for (std::int64_t i = 0; i < c.seq_q; ++i) {
        const double s = cap * std::tanh(w.q.get(i) / cap);
        // One key: l = 1, so nothing but the score and its change of base is rounded.
        ASSERT_NEAR(r.lse.get(i), s, 0x1p-24 * 8 * std::abs(s)) << row << ", cap " << cap;
      }
    }
  }
}

TEST(Numerics, OneScoreFarAboveTheRestTakesAll) {
  for (DType dtype : kDtypes) {
    for (int winner : {0, 17, 99}) {
      for (double top : {1e4, -1e4}) {
        std::vector<double> scores(100, top - 1e4);
        scores[winner] = top;
        const GivenScores given(dtype, scores);
        for (const std::string& row : rows_under_test(given.c)) {
          const Results r = make_results(given.c);
          ASSERT_TRUE(run_case(given.c, given.w, r, row).status.ok());
          EXPECT_EQ(r.lse.get(0), rounded(top, dtype)) << row;
          for (std::int64_t d = 0; d < 8; ++d) {
            EXPECT_EQ(r.o.get(d), given.w.v.at({0, 0, winner, d})) << row << " " << winner;
          }
        }
      }
    }
  }
}

TEST(Numerics, EqualScoresAverage) {
  for (double score : {0.0, 1e4, -1e4}) {
    const GivenScores given(DType::f32, std::vector<double>(64, score));
    for (const std::string& row : rows_under_test(given.c)) {
      const Results r = make_results(given.c);
      ASSERT_TRUE(run_case(given.c, given.w, r, row).status.ok());
      const double lse = score + std::log(64.0);
      EXPECT_NEAR(r.lse.get(0), lse, 4 * 0x1p-24 * (std::abs(lse) + 1)) << row;
      for (std::int64_t d = 0; d < 8; ++d) {
        double mean = 0, magnitude = 0;
        for (std::int64_t j = 0; j < 64; ++j) {
          mean += given.w.v.at({0, 0, j, d}) / 64;
          magnitude += std::abs(given.w.v.at({0, 0, j, d})) / 64;
        }
        EXPECT_NEAR(r.o.get(d), mean, 64 * 0x1p-24 * magnitude) << row;
      }
    }
  }
}

TEST(Numerics, ScoresThatRiseByTheBlockStillSumRight) {
  // Every new tile brings a new maximum, or none does.
  for (bool rising : {true, false}) {
    std::vector<double> scores(1000);
    for (std::size_t j = 0; j < scores.size(); ++j) {
      const double x = 0.25 * static_cast<double>(j);
      scores[j] = rising ? x : 250 - x;
    }
    const GivenScores given(DType::f32, scores);
    const Results oracle = oracle_results(given.c, given.w);
    for (const std::string& row : rows_under_test(given.c)) {
      const Results r = make_results(given.c);
      ASSERT_TRUE(run_case(given.c, given.w, r, row).status.ok());
      // Weights are off by roundings of s − lse, at the magnitude of the scores.
      EXPECT_LE(largest_difference(r.lse, oracle.lse), 4 * 250 * 0x1p-24) << row;
      EXPECT_LE(largest_difference(r.o, oracle.o), 4 * 250 * 0x1p-24 * 4) << row;
    }
  }
}

/// What a query's scores rise or fall by from 64 keys to the next, about: weights against the first
/// keys' maximum are too large for the dtype, or for f32, in one tile of keys after another. Of the
/// queries one in four takes the scores as they are, one halved, one reversed and one not at all.
TEST(Numerics, ScoresFarFromTheFirstOnes) {
  struct Levels {
    double first, step;
    int outlier;  ///< A key whose score is 7000; −1: none.
  };
  const Levels patterns[] = {{0, 8, -1},      {0, 100, -1}, {0, 500, -1},
                             {-7000, 80, -1}, {0, 0, 700},  {-7000, 0, 801}};
  constexpr double kFactors[] = {1, 0.5, -1, 0};
  constexpr double kScale = 0.125;
  for (DType dtype : {DType::f16, DType::bf16}) {
    for (std::int64_t head_dim : {64, 128}) {
      for (const Levels& levels : patterns) {
        for (int visible = 0; visible < 3; ++visible) {
          Case c;
          c.dtype = dtype;
          c.batch = c.heads_q = c.heads_kv = 1;
          c.seq_q = 450;
          c.seq_kv = 900;
          c.head_dim = c.head_dim_v = head_dim;
          c.backward = false;
          c.attention.scale = kScale;
          c.attention.causal = visible == 1;
          if (visible == 2) c.attention.window = {130, 20};
          Workload w = make_workload(c);
          for (std::int64_t i = 0; i < c.seq_q; ++i) w.q.set(i * head_dim, kFactors[i % 4]);
          for (std::int64_t j = 0; j < c.seq_kv; ++j) {
            const double tile = static_cast<double>(j / 64);
            const double level = j == levels.outlier ? 7000 : levels.first + levels.step * tile;
            w.k.set(j * head_dim, level / kScale);
          }
          const Results oracle = oracle_results(c, w);
          const Tolerances allowed = tolerances(c, w);
          for (const std::string& row : rows_under_test(c)) {
            const Results r = make_results(c);
            ASSERT_TRUE(run_case(c, w, r, row).status.ok());
            EXPECT_LE(largest_difference(r.o, oracle.o), allowed.o)
                << row << " " << c.describe() << ", " << levels.first << " + " << levels.step;
            EXPECT_LE(largest_difference(r.lse, oracle.lse), allowed.lse)
                << row << " " << c.describe() << ", " << levels.first << " + " << levels.step;
          }
        }
      }
    }
  }
}

/// f16's largest value; and values whose sum over all keys is the most that f32 holds.
TEST(Numerics, LargeValuesDoNotOverflow) {
  for (DType dtype : {DType::f16, DType::bf16, DType::f32}) {
    GivenScores given(dtype, std::vector<double>(50, 0.0));
    const double most = dtype == DType::f16 ? 65504 : 0x1.fep127 / 64;
    given.w.v.fill(rounded(most, dtype));
    for (const std::string& row : rows_under_test(given.c)) {
      const Results r = make_results(given.c);
      ASSERT_TRUE(run_case(given.c, given.w, r, row).status.ok());
      const double slack = dtype == DType::f32 ? 64 * 0x1p-24 * most : 0;
      for (std::int64_t d = 0; d < 8; ++d) {
        EXPECT_NEAR(r.o.get(d), rounded(most, dtype), slack) << row << " " << name_of(dtype);
      }
    }
  }
}

TEST(Numerics, BiasOfMinusInfinityHidesKeysLikeAMask) {
  Case masked;
  masked.seq_q = 50;
  masked.seq_kv = 90;
  masked.mask = Extents{};
  masked.attention.deterministic = true;
  Case biased = masked;
  biased.mask.reset();
  biased.bias = Extents{};
  const Workload with_mask = make_workload(masked);
  Workload with_bias = with_mask;
  with_bias.mask = {};
  with_bias.bias = Tensor(DType::f32, {2, 2, 50, 90});
  for (std::int64_t x = 0; x < with_bias.bias.count(); ++x) {
    with_bias.bias.set(x, with_mask.mask.get(x) == 0 ? -kInfinity : 0);
  }
  for (const std::string& row : rows_under_test(biased)) {
    const Results a = make_results(masked);
    const Results b = make_results(biased);
    ASSERT_TRUE(run_case(masked, with_mask, a, row).status.ok());
    ASSERT_TRUE(run_case(biased, with_bias, b, row).status.ok());
    EXPECT_EQ(largest_difference(a.o, b.o), 0) << row;
    EXPECT_EQ(largest_difference(a.lse, b.lse), 0) << row;
    EXPECT_EQ(largest_difference(a.d_q, b.d_q), 0) << row;
    EXPECT_EQ(largest_difference(a.d_k, b.d_k), 0) << row;
  }
}

}  // namespace
}  // namespace tessera::test
