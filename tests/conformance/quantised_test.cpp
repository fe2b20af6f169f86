// Quantised rows against the scheme's model: shapes, every switch of the scheme, integers and codes
// through what they give, non-finite inputs.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "support/conformance.hpp"
#include "support/quantised_conformance.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f16, DType::bf16, DType::f32};
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Shape = std::pair<std::int64_t, std::int64_t>;

Case shaped(int step, Shape shape, std::int64_t head_dim) {
  Case c;
  c.backward = false;
  c.attention.precision = step % 2 == 0 ? Precision::sage8 : Precision::sage4;
  c.dtype = kDtypes[step % 3];
  c.batch = 1;
  c.seq_q = shape.first;
  c.seq_kv = shape.second;
  c.head_dim = c.head_dim_v = head_dim;
  return c;
}

TEST(Quantised, RaggedLengths) {
  const Shape shapes[] = {{1, 1},     {1, 3},    {2, 1},     {64, 128}, {113, 203},
                          {128, 217}, {239, 1},  {799, 3},   {511, 1},  {108, 256},
                          {257, 128}, {17, 400}, {300, 449}, {3, 1},    {129, 65}};
  int step = 0;
  for (const Shape& shape : shapes) {
    for (int mask = 0; mask < 4; ++mask, ++step) {
      Case c = shaped(step, shape, step % 3 == 0 ? 128 : step % 3 == 1 ? 64 : 40);
      c.attention.causal = mask == 1 || mask == 2;
      c.attention.alignment = mask == 2 ? Alignment::top_left : Alignment::bottom_right;
      if (mask == 3) c.attention.window = {31, 12};
      check_quantised_case(c);
    }
  }
}

TEST(Quantised, LongLengths) {
  if (reduced()) GTEST_SKIP() << "too long for a reduced sweep";
  int step = 0;
  for (const Shape& shape : {Shape{1023, 1024}, Shape{1024, 1023}, Shape{1500, 1500}}) {
    for (std::int64_t head_dim : {64, 128}) {
      Case c = shaped(step, shape, head_dim);
      c.heads_q = c.heads_kv = 1;
      c.attention.causal = step++ % 2 == 1;
      check_quantised_case(c);
    }
  }
}

/// On a GPU blocks that would be idle take a part of the keys: all of few queries' and those of the
/// last works of many.
TEST(Quantised, ManyKeysForFewQueries) {
  int step = 0;
  for (const Shape& shape : {Shape{70, 1024}, Shape{200, 1500}, Shape{33, 2049}}) {
    for (std::int64_t head_dim : {64, 128}) {
      for (int sage4 = 0; sage4 < 2; ++sage4) {
        Case c = shaped(sage4, shape, head_dim);
        c.dtype = kDtypes[step++ % 3];
        check_quantised_case(c);
      }
    }
  }
  for (std::int64_t head_dim : {64, 128}) {
    Case c = shaped(head_dim == 64 ? 1 : 0, {20, 1300}, head_dim);
    c.batch = 4;
    c.heads_q = c.heads_kv = 35;
    check_quantised_case(c);
  }
}

TEST(Quantised, HeadDims) {
  int step = 0;
  for (std::int64_t head_dim : {16, 24, 32, 40, 48, 59, 64, 80, 96, 111, 128, 160, 192, 256}) {
    for (int dtype = 0; dtype < 3; ++dtype) {
      Case c = shaped(step++, {67, 130}, head_dim);
      c.dtype = kDtypes[dtype];
      c.attention.causal = step % 2 == 0;
      check_quantised_case(c);
    }
  }
  for (std::int64_t head_dim : {1, 2, 3, 5, 8, 15, 320, 512}) {
    check_quantised_case(shaped(step++, {33, 70}, head_dim));
  }
}

TEST(Quantised, ValuesOfAnotherHeadDim) {
  const std::pair<std::int64_t, std::int64_t> dims[] = {{64, 128}, {128, 64}, {192, 128},
                                                        {40, 59},  {59, 40},  {128, 1},
                                                        {1, 128},  {16, 256}, {96, 111}};
  int step = 0;
  for (const auto& [head_dim, head_dim_v] : dims) {
    for (int dtype = 0; dtype < 2; ++dtype) {
      Case c = shaped(step++, {70, 97}, head_dim);
      c.head_dim_v = head_dim_v;
      check_quantised_case(c);
    }
  }
}

TEST(Quantised, NothingAtAll) {
  for (int dimension = 0; dimension < 3; ++dimension) {
    for (int step = 0; step < 3; ++step) {
      Case c = shaped(step, {5, 7}, 64);
      (dimension == 0 ? c.batch : dimension == 1 ? c.seq_q : c.seq_kv) = 0;
      check_quantised_case(c);
    }
  }
}

TEST(Quantised, GroupedHeads) {
  const std::pair<std::int64_t, std::int64_t> heads[] = {{1, 1},  {2, 1}, {6, 1}, {4, 2},
                                                         {12, 2}, {6, 3}, {5, 5}};
  int step = 0;
  for (const auto& [heads_q, heads_kv] : heads) {
    for (int dtype = 0; dtype < 2; ++dtype) {
      Case c = shaped(step++, {70, 190}, dtype == 0 ? 64 : 128);
      c.batch = 2;
      c.heads_q = heads_q;
      c.heads_kv = heads_kv;
      c.attention.causal = step % 3 == 1;
      check_quantised_case(c);
    }
  }
}

/// Every granularity × smoothing × format of PV, on channels with biases, so that smoothing has
/// something to take away.
TEST(Quantised, EverySwitchOfTheScheme) {
  int step = 0;
  for (int granularity = 1; granularity <= 5; ++granularity) {
    for (int smooth_q = 1; smooth_q <= 3; ++smooth_q) {
      for (int bits = 0; bits < 8; ++bits, ++step) {
        for (Precision precision : {Precision::sage8, Precision::sage4}) {
          Case c = shaped(step, {150, 203}, step % 2 == 0 ? 64 : 40);
          c.attention.precision = precision;
          Quantization& pieces = c.attention.quantization;
          pieces.granularity = static_cast<ScaleGranularity>(granularity);
          pieces.smooth_q = static_cast<SmoothQ>(smooth_q);
          pieces.smooth_k = bits & 1 ? Smoothing::on : Smoothing::off;
          pieces.smooth_v = bits & 2 ? Smoothing::on : Smoothing::off;
          pieces.pv = bits & 4 ? PvFormat::half : PvFormat::fp8;
          c.heads_kv = 1;
          c.channel_bias = 2;
          c.attention.causal = step % 3 == 1;
          check_quantised_case(c);
        }
      }
    }
  }
}

/// Each query sees one key, so o is the key's codes times their scales, and the LSE its score: an
/// integer or a code that is off by one shows.
TEST(Quantised, IntegersAndCodesThroughAWindowOfOneKey) {
  int step = 0;
  for (int granularity = 1; granularity <= 5; ++granularity) {
    for (SmoothQ smooth_q : {SmoothQ::none, SmoothQ::tensor, SmoothQ::block}) {
      for (Smoothing smooth : {Smoothing::off, Smoothing::on}) {
        for (std::int64_t head_dim : {64, 128}) {
          for (DType dtype : kDtypes) {
            Case c = shaped(step++, {389, 389}, head_dim);
            c.dtype = dtype;
            c.heads_q = c.heads_kv = 1;
            c.attention.window = {0, 0};
            c.attention.quantization.granularity = static_cast<ScaleGranularity>(granularity);
            c.attention.quantization.smooth_q = smooth_q;
            c.attention.quantization.smooth_k = smooth;
            c.attention.quantization.smooth_v = smooth;
            c.channel_bias = 1;
            check_quantised_case(c);
          }
        }
      }
    }
  }
}

TEST(Quantised, Logits) {
  int step = 0;
  for (double logits : {0.01, 5.0, 30.0, 300.0, 2500.0}) {
    for (DType dtype : kDtypes) {
      Case c = shaped(step++, {100, 290}, 64);
      c.dtype = dtype;
      c.logits = logits;
      c.attention.causal = step % 2 == 0;
      check_quantised_case(c);
    }
  }
}

TEST(Quantised, ScaleOfAnySign) {
  int step = 0;
  for (double scale : {1.0, -0.3, 0.0, 1e-3}) {
    for (int precision = 0; precision < 2; ++precision) {
      Case c = shaped(step++, {113, 203}, 64);
      c.attention.scale = scale;
      c.logits = scale == 0 ? 1 : std::abs(scale) * 7;
      check_quantised_case(c);
    }
  }
}

/// Channels of zeros, a channel far above the rest, constant rows, zeros alone; magnitudes near the
/// ends of f32.
TEST(Quantised, OddChannels) {
  for (int step = 0; step < 12; ++step) {
    Case c = shaped(step, {130, 150}, 64);
    c.attention.quantization.smooth_v = step % 4 < 2 ? Smoothing::on : Smoothing::off;
    if (step / 2 == 5) c.dtype = DType::f32;
    Workload w = make_workload(c);
    for (Tensor* t : {&w.q, &w.k, &w.v}) {
      for (std::int64_t x = 0; x < t->count(); ++x) {
        const std::int64_t d = x % 64, i = x / 64;
        if (step / 2 == 0 && d % 8 == 3) t->set(x, 0);
        if (step / 2 == 1 && d == 17) t->set(x, 50 * t->get(x));
        if (step / 2 == 2 && i % 5 == 1) t->set(x, 0.75);
        if (step / 2 == 3) t->set(x, 0);
        if (step / 2 == 4) t->set(x, d % 3 == 0 ? -1.5 : 2);
        if (step / 2 == 5) t->set(x, t->get(x) * (t == &w.q ? 0x1p-80 : 0x1p80));
      }
    }
    check_quantised_workload(c, w);
  }
}

/// All scores above zero, all below, one above and the rest below; with rows that are constant the
/// integers are the largest there are.
TEST(Quantised, ScoresOfOneSign) {
  int step = 0;
  for (double sign : {1.0, -1.0}) {
    for (int kind = 0; kind < 3; ++kind) {
      const double spread = kind == 0 ? 0 : 0.25;
      for (std::int64_t head_dim : {64, 128}) {
        for (int precision = 0; precision < 2; ++precision) {
          Case c = shaped(step++, {200, 390}, head_dim);
          c.dtype = kDtypes[step / 2 % 3];
          c.attention.quantization.smooth_k = Smoothing::off;
          c.attention.causal = step / 4 % 2 == 1;
          Workload w = make_workload(c);
          for (std::int64_t x = 0; x < w.q.count(); ++x) w.q.set(x, 1 + spread * w.q.get(x));
          for (std::int64_t x = 0; x < w.k.count(); ++x) {
            const bool other = kind == 2 && x / head_dim % 390 == 5;
            w.k.set(x, (other ? -sign : sign) + spread * w.k.get(x));
          }
          check_quantised_workload(c, w);
        }
      }
    }
  }
}

/// A NaN or an infinity in one head makes NaN of what shares its scales, and of nothing else.
TEST(Quantised, NaNAndInfinityComeThrough) {
  int step = 0;
  for (double bad : {kNan, kInfinity, -kInfinity}) {
    for (int which = 0; which < 3; ++which) {
      for (Smoothing smooth : {Smoothing::off, Smoothing::on}) {
        for (PvFormat pv : {PvFormat::fp8, PvFormat::half}) {
          Case c = shaped(step++, {200, 200}, 64);
          c.attention.quantization.smooth_k = smooth;
          c.attention.quantization.smooth_v = smooth;
          c.attention.quantization.pv = pv;
          c.attention.causal = which == 1;
          Workload w = make_workload(c);
          (which == 0 ? w.q : which == 1 ? w.k : w.v).put({0, 1, 70, 5}, bad);
          const QuantisedExpectation e = expect_quantised(c, w);
          EXPECT_FALSE(std::isfinite(e.values.o.at({0, 1, 70, 5}))) << which;
          EXPECT_TRUE(std::isfinite(e.values.o.at({0, 0, 70, 5}))) << which;
          check_quantised_workload(c, w);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tessera::test
