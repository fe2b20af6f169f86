// The quantised CPU kernels against the scalar model: integers and values bit for bit, outputs to
// rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "core/half.hpp"
#include "core/listed_keys.hpp"
#include "cpu/sage_operands.hpp"
#include "quant/quantize.hpp"
#include "support/conformance.hpp"
#include "support/random.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};

std::vector<std::string> sage_rows() {
  std::vector<std::string> rows;
  for (const std::string& row : rows_under_test()) {
    if (row.rfind("cpu_sage_", 0) == 0) rows.push_back(row);
  }
  return rows;
}

const cpu::SageIsa& isa_of(const std::string& row) {
  if (row == "cpu_sage_amx") return cpu::kSageAmx;
  if (row == "cpu_sage_avx512_bf16") return cpu::kSageAvx512Bf16;
  return row == "cpu_sage_avx512" ? cpu::kSageAvx512 : cpu::kSageAvx2;
}

/// Whether the row multiplies 16-bit weights by values as bf16 only.
bool has_bf16_values(const std::string& row) {
  return row == "cpu_sage_amx" || row == "cpu_sage_avx512_bf16";
}

Quantization random_pieces(Random& random) {
  Quantization pieces;
  pieces.granularity = static_cast<ScaleGranularity>(random.below(6));
  pieces.smooth_q = static_cast<SmoothQ>(random.below(4));
  pieces.smooth_k = static_cast<Smoothing>(random.below(3));
  pieces.smooth_v = static_cast<Smoothing>(random.below(3));
  pieces.pv = static_cast<PvFormat>(random.below(3));
  return pieces;
}

std::vector<std::int32_t> random_offsets(Random& random, std::int64_t count, std::int64_t tokens) {
  std::vector<std::int32_t> offsets(count + 1);
  for (std::int32_t& offset : offsets) {
    offset = static_cast<std::int32_t>(random.below(tokens + 1));
  }
  std::sort(offsets.begin(), offsets.end());
  offsets[0] = 0;
  return offsets;
}

Case random_case(Random& random) {
  Case c;
  c.backward = false;
  c.dtype = kDtypes[random.below(3)];
  c.heads_kv = 1 + random.below(2);
  c.heads_q = c.heads_kv * (1 + random.below(3));
  c.seq_q = 1 + random.below(random.chance(0.4) ? 24 : 330);
  c.seq_kv = 1 + random.below(random.chance(0.3) ? 24 : 420);
  c.head_dim = random.chance(0.4) ? 64 : 1 + random.below(random.chance(0.8) ? 130 : 256);
  c.head_dim_v = random.chance(0.5) ? c.head_dim : 1 + random.below(160);
  if (random.chance(0.25)) {
    c.batch = 1 + random.below(4);
    c.cu_seqlens_q = random_offsets(random, c.batch, c.seq_q);
    c.cu_seqlens_k = random_offsets(random, c.batch, c.seq_kv);
  } else if (random.chance(0.3)) {
    for (std::int64_t b = 0; b < c.batch; ++b) {
      c.q_lens.push_back(static_cast<std::int32_t>(random.below(c.seq_q + 1)));
      c.kv_lens.push_back(static_cast<std::int32_t>(random.below(c.seq_kv + 1)));
    }
  }
  Attention& a = c.attention;
  a.precision = random.chance(0.5) ? Precision::sage8 : Precision::sage4;
  a.quantization = random_pieces(random);
  a.causal = random.chance(0.4);
  a.alignment = random.chance(0.5) ? Alignment::bottom_right : Alignment::top_left;
  if (random.chance(0.3)) a.window = {random.below(90) - 1, random.below(90) - 1};
  if (random.chance(0.2)) a.softcap = 0.5 + 40 * random.uniform();
  if (random.chance(0.2)) a.dropout_p = 0.9 * random.uniform();
  if (random.chance(0.2)) a.scale = random.normal();
  if (random.chance(0.2)) c.bias = Extents{random.chance(0.5), random.chance(0.5), true};
  if (random.chance(0.25)) c.mask = Extents{random.chance(0.5), random.chance(0.5), true};
  c.alibi_rank = random.chance(0.2) ? static_cast<int>(1 + random.below(2)) : 0;
  c.sink = random.chance(0.25);
  if (random.chance(0.3)) {
    c.blocks =
        BlockPattern{16 * (1 + random.below(9)), 16 * (1 + random.below(8)), random.chance(0.5),
                     random.chance(0.5),         random.uniform(),           random.uniform()};
  }
  c.layout = std::array{LayoutKind::contiguous, LayoutKind::bshd, LayoutKind::padded,
                        LayoutKind::reversed}[random.below(4)];
  constexpr int kThreads[] = {1, 2, 3, 16};
  c.threads = kThreads[random.below(4)];
  return c;
}

std::string describe(const Case& c) {
  const Quantization q = resolved(c.attention.precision, c.attention.quantization);
  return c.describe() + " " + name_of(c.attention.precision) + " " + name_of(q.granularity) +
         " smooth_q=" + name_of(q.smooth_q) + (q.smooth_k == Smoothing::on ? " smooth_k" : "") +
         (q.smooth_v == Smoothing::on ? " smooth_v" : "") + " pv=" + name_of(q.pv);
}

struct Difference {
  double largest = 0;  ///< Of the largest output.
  double relative_l1 = 0;
  bool same_kind = true;  ///< NaN and infinities in the same places.
};

Difference difference(const Tensor& a, const Tensor& b) {
  Difference d;
  double sum = 0, largest = 0;
  for (std::int64_t i = 0; i < a.count(); ++i) {
    const double x = a.get(i), y = b.get(i);
    if (!std::isfinite(x) || !std::isfinite(y)) {
      d.same_kind = d.same_kind && (x == y || (std::isnan(x) && std::isnan(y)));
      continue;
    }
    d.largest = std::max(d.largest, std::abs(x - y));
    d.relative_l1 += std::abs(x - y);
    sum += std::abs(y);
    largest = std::max(largest, std::abs(y));
  }
  if (sum > 0) d.relative_l1 /= sum;
  if (largest > 0) d.largest /= largest;
  return d;
}

/// Runs a row and the model. A weight near the middle of two E4M3 numbers may be rounded to the
/// other one, which moves it by a sixteenth; that is rare, so the sum over all outputs is close.
void expect_close(const Case& c, const Workload& w, const std::string& row) {
  const Results model = make_results(c), results = make_results(c), again = make_results(c);
  const Attempt expected = run_case(c, w, model, "reference");
  ASSERT_TRUE(expected.status.ok()) << expected.status.message();
  const Attempt attempt = run_case(c, w, results, row);
  if (attempt.status.code() == StatusCode::unsupported) {
    EXPECT_TRUE(has_bf16_values(row)) << row << " " << attempt.status.message();
    return;
  }
  ASSERT_TRUE(attempt.status.ok()) << attempt.status.message();
  EXPECT_EQ(attempt.forward_row, row);
  EXPECT_TRUE(attempt.workspace_intact);
  EXPECT_TRUE(attempt.inputs_intact);
  const double unit = c.dtype == DType::f32 ? 0x1p-24 : c.dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
  const Difference o = difference(results.o, model.o);
  const Difference lse = difference(results.lse, model.lse);
  EXPECT_TRUE(o.same_kind && lse.same_kind) << row << " " << describe(c);
  EXPECT_LE(o.largest, 0x1p-4 + 2 * unit) << row << " " << describe(c);
  EXPECT_LE(o.relative_l1, 0x1p-9 + unit) << row << " " << describe(c);
  EXPECT_LE(lse.relative_l1, 0x1p-18) << row << " " << describe(c);
  ASSERT_TRUE(run_case(c, w, again, row, 0x55).status.ok());
  EXPECT_TRUE(results.o.same_bits(again.o) && results.lse.same_bits(again.lse)) << describe(c);
  Results without_lse = make_results(c);
  without_lse.lse = {};
  ASSERT_TRUE(run_case(c, w, without_lse, row).status.ok());
  EXPECT_TRUE(results.o.same_bits(without_lse.o)) << row << " " << describe(c);
}

TEST(SageKernels, AgreeWithTheModelOnRandomProblems) {
  Random random(8);
  for (int x = 0; x < (reduced() ? 60 : 400); ++x) {
    const Case c = random_case(random);
    const Workload w = make_workload(c);
    for (const std::string& row : sage_rows()) expect_close(c, w, row);
  }
}

TEST(SageKernels, AgreeWithTheModelOnRaggedShapes) {
  constexpr std::int64_t kShapes[][2] = {{1, 1},     {1, 3},     {2, 1},    {64, 128}, {113, 203},
                                         {128, 217}, {239, 1},   {799, 3},  {511, 1},  {108, 256},
                                         {257, 640}, {640, 257}, {513, 513}};
  for (const auto& shape : kShapes) {
    for (const std::int64_t dim : {16, 40, 59, 64, 111, 128, 256}) {
      if (reduced() && dim != 40 && dim != 128) continue;
      Case c;
      c.backward = false;
      c.batch = 1;
      c.heads_kv = 1;
      c.seq_q = shape[0];
      c.seq_kv = shape[1];
      c.head_dim = c.head_dim_v = dim;
      c.dtype = kDtypes[static_cast<std::size_t>(shape[0] + dim) % 3];
      c.attention.causal = (shape[0] + dim) % 2 == 0;
      c.attention.precision = dim % 3 == 0 ? Precision::sage4 : Precision::sage8;
      const Workload w = make_workload(c);
      for (const std::string& row : sage_rows()) expect_close(c, w, row);
    }
  }
}

/// Where a head's operands lie, in whatever format the row has.
struct Operands {
  const cpu::SageIsa& isa;
  cpu::SageTile tile;

  static int from_words(const cpu::SageIsa& isa, const std::int32_t* row, std::int64_t d) {
    if (isa.ints_per_word == 2) return reinterpret_cast<const std::int16_t*>(row)[d];
    return reinterpret_cast<const std::int8_t*>(row)[d];
  }
  int q(std::int64_t i, std::int64_t d) const {
    return from_words(isa, tile.q_words + i * tile.words, d);
  }
  int k(std::int64_t j, std::int64_t d) const {
    return from_words(isa, tile.k_words + j * tile.words, d);
  }
  float v(std::int64_t j, std::int64_t d) const {
    const auto* bits = static_cast<const std::uint16_t*>(tile.values.data);
    const std::int64_t stride = tile.values.stride;
    const std::uint16_t x =
        isa.value_strips ? bits[j / 32 * 32 * stride + d * 32 + j % 32] : bits[j * stride + d];
    return tile.values.dtype == DType::f16 ? to_f32(f16{x}) : to_f32(bf16{x});
  }
};

Problem problem_of(const Case& c) {
  Problem p;
  p.dtype = c.dtype;
  p.batch = c.batch;
  p.heads_q = c.heads_q;
  p.heads_kv = c.heads_kv;
  p.seq_q = c.seq_q;
  p.seq_kv = c.seq_kv;
  p.head_dim = c.head_dim;
  p.head_dim_v = c.head_dim_v;
  p.alignment = c.attention.alignment;
  p.precision = c.attention.precision;
  p.quantization = resolved(p.precision, c.attention.quantization);
  p.varlen = c.varlen();
  p.q_lens = !c.q_lens.empty();
  p.kv_lens = !c.kv_lens.empty();
  p.block_mask = c.blocks.has_value();
  if (c.blocks) {
    p.block_q = c.blocks->block_q;
    p.block_kv = c.blocks->block_kv;
  }
  p.threads = c.threads;
  return p;
}

/// One head's tokens as the scalar model takes them.
struct ModelTokens {
  std::vector<float> data;
  std::unique_ptr<bool[]> used;
  quant::TokenRows rows;
};

ModelTokens tokens_of(const Case& c, const Tensor& t, std::int64_t b, std::int64_t h,
                      std::int64_t begin, std::int64_t count) {
  ModelTokens x;
  const std::int64_t columns = t.size(c.varlen() ? 2 : 3);
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t d = 0; d < columns; ++d) {
      x.data.push_back(
          static_cast<float>(c.varlen() ? t.at({begin + i, h, d}) : t.at({b, h, begin + i, d})));
    }
  }
  x.rows = {x.data.data(), count, columns, nullptr};
  return x;
}

bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b)) || a == b;
}

/// Counts operands that differ from the model's.
class OperandComparison {
 public:
  OperandComparison(const Case& c, const Workload& w, const std::string& row)
      : c_(c),
        w_(w),
        isa_(isa_of(row)),
        problem_(problem_of(c)),
        operands_(problem_, isa_, layout_) {
    const std::size_t grid = layout_.add((problem_.batch + 2) * 8);
    memory_.reset(new (std::align_val_t{64}) std::byte[layout_.bytes()]);
    std::memset(memory_.get(), 0xff, layout_.bytes());
    arguments_.inputs = w.inputs();
    arguments_.workspace = memory_.get();
    arguments_.executor = &default_executor();
    const cpu::TileGrid tiles(problem_, arguments_.inputs, blocking_,
                              reinterpret_cast<std::int64_t*>(memory_.get() + grid));
    operands_.quantise(arguments_, tiles);
  }

  std::int64_t compared = 0, different = 0;

  void compare_all() {
    for (std::int64_t b = 0; b < problem_.batch; ++b) {
      const Sequence s = sequence_of(problem_, arguments_.inputs, b);
      for (std::int64_t h = 0; h < problem_.heads_q; ++h) compare(b, h, s);
    }
  }

 private:
  void expect(bool equal) {
    ++compared;
    different += equal ? 0 : 1;
  }

  void compare_ints(const ModelTokens& x, const quant::Means& means, quant::Side side,
                    const Operands& row, const float* scales) {
    const std::int64_t columns = x.rows.columns;
    const auto granularity = problem_.quantization.granularity;
    const std::size_t room = static_cast<std::size_t>(x.rows.rows) + 129;
    std::vector<std::int8_t> ints(x.data.size() + 1);
    std::vector<float> model_scales(room);
    std::vector<std::uint32_t> magnitudes(room);
    quant::quantise_tokens(x.rows, means, granularity, side, quant::levels_of(problem_.precision),
                           ints.data(), model_scales.data(), magnitudes.data());
    for (std::int64_t i = 0; i < x.rows.rows; ++i) {
      expect(same(model_scales[quant::group_of(granularity, side, i)], scales[i]));
      for (std::int64_t d = 0; d < columns; ++d) {
        expect(ints[i * columns + d] == (side == quant::Side::queries ? row.q(i, d) : row.k(i, d)));
      }
    }
  }

  void compare(std::int64_t b, std::int64_t h, const Sequence& s) {
    const Quantization& scheme = problem_.quantization;
    const std::int64_t h_kv = h / problem_.group();
    Operands row{isa_, {}};
    operands_.attach(arguments_, b, h, s, 0, row.tile);

    ModelTokens q = tokens_of(c_, w_.q, b, h, s.q_begin, s.q_len);
    std::vector<float> mean((s.q_len / 128 + 1) * c_.head_dim);
    quant::Means means;
    if (scheme.smooth_q == SmoothQ::tensor) {
      quant::channel_means(q.rows, quant::kQueryBlock, mean.data());
      means = {mean.data()};
    } else if (scheme.smooth_q == SmoothQ::block) {
      quant::block_means(q.rows, quant::kQueryBlock, mean.data());
      means = {mean.data(), quant::kQueryBlock};
    }
    compare_ints(q, means, quant::Side::queries, row, row.tile.q_scale);

    ModelTokens k = tokens_of(c_, w_.k, b, h_kv, s.kv_begin, s.kv_len);
    ModelTokens v = tokens_of(c_, w_.v, b, h_kv, s.kv_begin, s.kv_len);
    k.used.reset(new bool[s.kv_len + 1]);
    for (std::int64_t j = 0; j < s.kv_len; ++j) {
      k.used[j] = is_key_listed(problem_, arguments_.inputs, b, h_kv, j);
    }
    k.rows.used = v.rows.used = k.used.get();
    std::vector<float> k_mean(c_.head_dim), v_mean(c_.head_dim_v);
    quant::channel_means(k.rows, quant::kKeyBlock, k_mean.data());
    quant::channel_means(v.rows, quant::kKeyBlock, v_mean.data());
    const bool smooth_k = scheme.smooth_k == Smoothing::on;
    compare_ints(k, smooth_k ? quant::Means{k_mean.data()} : quant::Means{}, quant::Side::keys, row,
                 row.tile.k_scale);
    for (std::int64_t d = 0; smooth_k && s.kv_len > 0 && d < c_.head_dim; ++d) {
      expect(same(k_mean[d], row.tile.k_mean[d]));
    }
    compare_values(v, v_mean, row);
  }

  void compare_values(const ModelTokens& v, const std::vector<float>& v_mean, const Operands& row) {
    const bool smooth = problem_.quantization.smooth_v == Smoothing::on;
    const quant::Means means = smooth ? quant::Means{v_mean.data()} : quant::Means{};
    const std::int64_t columns = c_.head_dim_v;
    std::vector<std::uint8_t> codes(v.data.size() + 1);
    std::vector<float> scales(columns);
    const bool fp8 = problem_.quantization.pv == PvFormat::fp8;
    if (fp8) quant::quantise_channels(v.rows, means, codes.data(), scales.data());
    for (std::int64_t d = 0; v.rows.rows > 0 && d < columns; ++d) {
      if (fp8) expect(same(scales[d], row.tile.v_scale[d]));
      if (smooth) expect(same(v_mean[d], row.tile.v_mean[d]));
      for (std::int64_t j = 0; j < v.rows.rows; ++j) {
        float value = 0;
        if (fp8) {
          value = quant::decode_e4m3(codes[j * columns + d]);
        } else if (v.rows.has(j)) {
          value = static_cast<float>(
              rounded(means.subtract_from(v.rows.at(j, d), v.rows, j, d), row.tile.values.dtype));
        }
        expect(same(value, row.v(j, d)));
      }
    }
  }

  struct Release {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };

  const Case& c_;
  const Workload& w_;
  const cpu::SageIsa& isa_;
  Problem problem_;
  cpu::Blocking blocking_{128, 128, 64, 64};
  cpu::WorkspaceLayout layout_;
  cpu::SageOperands operands_;
  std::unique_ptr<std::byte[], Release> memory_;
  Arguments arguments_;
};

TEST(SageKernels, OperandsAreTheModelsBitForBit) {
  Random random(9);
  std::int64_t compared = 0;
  for (int x = 0; x < (reduced() ? 60 : 200); ++x) {
    const Case c = random_case(random);
    const Workload w = make_workload(c);
    for (const std::string& row : sage_rows()) {
      const bool half = c.attention.quantization.pv == PvFormat::half;
      if (has_bf16_values(row) && half && c.dtype == DType::f16) continue;
      OperandComparison comparison(c, w, row);
      comparison.compare_all();
      EXPECT_EQ(comparison.different, 0)
          << row << " of " << comparison.compared << ": " << describe(c);
      compared += comparison.compared;
    }
  }
  std::printf("operands compared: %lld\n", static_cast<long long>(compared));
}

TEST(SageKernels, NaNAndInfinityComeThrough) {
  constexpr double kBad[] = {std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::infinity(),
                             -std::numeric_limits<double>::infinity()};
  for (const double bad : kBad) {
    for (int which = 0; which < 3; ++which) {
      for (const Smoothing smooth : {Smoothing::off, Smoothing::on}) {
        for (const PvFormat pv : {PvFormat::fp8, PvFormat::half}) {
          Case c;
          c.backward = false;
          c.dtype = DType::bf16;
          c.seq_q = 130;
          c.seq_kv = 150;
          c.attention.precision = Precision::sage8;
          c.attention.quantization.smooth_k = c.attention.quantization.smooth_v = smooth;
          c.attention.quantization.pv = pv;
          const Workload w = make_workload(c);
          const_cast<Tensor&>(which == 0 ? w.q : which == 1 ? w.k : w.v).put({1, 1, 64, 5}, bad);
          const Results model = make_results(c);
          ASSERT_TRUE(run_case(c, w, model, "reference").status.ok());
          for (const std::string& row : sage_rows()) {
            const Results results = make_results(c);
            ASSERT_TRUE(run_case(c, w, results, row).status.ok());
            for (std::int64_t i = 0; i < results.o.count(); ++i) {
              ASSERT_EQ(std::isfinite(model.o.get(i)), std::isfinite(results.o.get(i)))
                  << row << " tensor " << which << " element " << i << " of " << bad << " "
                  << describe(c);
            }
          }
        }
      }
    }
  }
}

TEST(SageKernels, LargeFiniteScoresStayFinite) {
  for (const double logits : {1e2, 1e4}) {
    Case c;
    c.backward = false;
    c.seq_q = 130;
    c.seq_kv = 300;
    c.logits = logits;
    c.attention.precision = Precision::sage8;
    const Workload w = make_workload(c);
    for (const std::string& row : sage_rows()) {
      const Results results = make_results(c);
      ASSERT_TRUE(run_case(c, w, results, row).status.ok());
      for (std::int64_t i = 0; i < results.o.count(); ++i) {
        ASSERT_TRUE(std::isfinite(results.o.get(i))) << row;
      }
    }
  }
}

TEST(SageKernels, TheTableTakesThemAndSaysWhyNot) {
  Case c;
  c.backward = false;
  c.attention.precision = Precision::sage8;
  const Workload w = make_workload(c);
  const Result<Plan> plan = Plan::create(c.attention, w.inputs());
  ASSERT_TRUE(plan.ok());
  if (!sage_rows().empty()) {
    EXPECT_NE(plan.value().explain().find("cpu_sage_"), std::string::npos);
  }
  c.attention.precision = Precision::exact;
  for (const std::string& row : sage_rows()) {
    const Results results = make_results(c);
    const Attempt attempt = run_case(c, w, results, row);
    EXPECT_EQ(attempt.status.code(), StatusCode::unsupported);
    EXPECT_NE(attempt.status.message().find("precision exact"), std::string::npos)
        << attempt.status.message();
  }
}

}  // namespace
}  // namespace tessera::test
