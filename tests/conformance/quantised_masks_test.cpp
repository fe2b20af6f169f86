// Quantised rows under everything that acts on a score or says which tokens take part: masks,
// packed sequences, used lengths, block masks; and layouts.
#include <gtest/gtest.h>

#include <utility>

#include "support/conformance.hpp"
#include "support/quantised_conformance.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f16, DType::bf16, DType::f32};
using Offsets = std::vector<std::int32_t>;

/// The default scheme of sage8 or of sage4, or one with other means and scales.
void choose_scheme(int step, Case& c) {
  c.backward = false;
  c.dtype = kDtypes[step % 3];
  c.attention.precision = step % 2 == 0 ? Precision::sage8 : Precision::sage4;
  if (step % 4 < 2) return;
  Quantization& pieces = c.attention.quantization;
  pieces.granularity = static_cast<ScaleGranularity>(1 + step % 5);
  pieces.smooth_q = step % 8 < 4 ? SmoothQ::block : SmoothQ::none;
  pieces.smooth_k = step % 3 == 0 ? Smoothing::off : Smoothing::on;
  pieces.smooth_v = step % 3 == 1 ? Smoothing::on : Smoothing::off;
  c.channel_bias = 1;
}

Case base(int step) {
  Case c;
  choose_scheme(step, c);
  c.heads_kv = step % 2 + 1;
  c.seq_q = 113;
  c.seq_kv = 203;
  c.head_dim = step % 5 < 2 ? 64 : 48;
  c.head_dim_v = step % 5 < 2 ? 64 : 32;
  return c;
}

TEST(QuantisedMasks, CausalOnBothSidesOfTheDiagonal) {
  const std::pair<std::int64_t, std::int64_t> shapes[] = {
      {1, 1}, {1, 200}, {200, 1}, {64, 64}, {65, 63}, {63, 65}, {200, 70}, {70, 200}, {300, 300}};
  int step = 0;
  for (const auto& [seq_q, seq_kv] : shapes) {
    for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
      Case c = base(step++);
      c.seq_q = seq_q;
      c.seq_kv = seq_kv;
      c.attention.causal = true;
      c.attention.alignment = alignment;
      check_quantised_case(c);
    }
  }
}

TEST(QuantisedMasks, Windows) {
  const Window windows[] = {{0, 0},   {0, -1},  {-1, 0},    {1, 0},    {16, 16},
                            {63, 0},  {5, 70},  {70, 5},    {-1, 20},  {20, -1},
                            {300, 0}, {0, 300}, {127, 128}, {200, 200}};
  int step = 0;
  for (const Window& window : windows) {
    for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
      Case c = base(step);
      if (step % 5 == 1) std::swap(c.seq_q, c.seq_kv);
      c.attention.window = window;
      c.attention.alignment = alignment;
      c.attention.causal = step++ % 3 == 2;
      check_quantised_case(c);
    }
  }
}

TEST(QuantisedMasks, DenseMaskOfEveryExtent) {
  for (int step = 0; step < 16; ++step) {
    Case c = base(step);
    c.mask = Extents{(step & 1) != 0, (step & 2) != 0, (step & 4) != 0};
    c.mask_empty_rows = step >= 14 ? 1 : step >= 8 ? 0.5 : 0.1;
    c.attention.causal = step % 3 == 0;
    c.sink = step % 4 == 3;
    check_quantised_case(c);
  }
}

TEST(QuantisedMasks, Bias) {
  for (int step = 0; step < 16; ++step) {
    Case c = base(step);
    c.bias = Extents{(step & 1) != 0, (step & 2) != 0, (step & 4) != 0};
    c.bias_f32 = step >= 8;
    c.bias_minus_infinity = step % 4 == 1 ? 0.3 : step == 15 ? 1 : 0;
    c.attention.causal = step % 3 == 1;
    check_quantised_case(c);
  }
}

TEST(QuantisedMasks, Alibi) {
  int step = 0;
  for (int rank : {1, 2}) {
    for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
      for (bool causal : {false, true}) {
        Case c = base(step++);
        c.alibi_rank = rank;
        c.attention.alignment = alignment;
        c.attention.causal = causal;
        check_quantised_case(c);
      }
    }
  }
}

TEST(QuantisedMasks, Softcap) {
  int step = 0;
  for (double cap : {0.5, 5.0, 30.0, 1000.0}) {
    for (bool causal : {false, true}) {
      Case c = base(step++);
      c.attention.softcap = cap;
      c.logits = 3;
      c.attention.causal = causal;
      check_quantised_case(c);
    }
  }
}

TEST(QuantisedMasks, SinkAndDropout) {
  for (int step = 0; step < 8; ++step) {
    Case c = base(step);
    c.sink = step != 7;
    c.attention.causal = step % 2 == 1;
    if (step >= 4) c.attention.dropout_p = step == 6 ? 0.95 : 0.2;
    check_quantised_case(c);
  }
}

TEST(QuantisedMasks, EverythingAtOnce) {
  for (int step = 0; step < 12; ++step) {
    Case c = base(step);
    c.heads_q = 6;
    c.heads_kv = step % 2 == 0 ? 1 : 3;
    c.attention.causal = true;
    c.attention.window = {90, -1};
    c.attention.softcap = 20;
    c.mask = Extents{true, false, true};
    c.alibi_rank = step % 2 + 1;
    c.sink = true;
    c.kv_lens = {150, 203};
    c.q_lens = {113, 60};
    if (step >= 4) c.blocks = BlockPattern{32, 48, true, true, 0.6, 0.5};
    if (step >= 8) {
      c.attention.dropout_p = 0.15;
      c.bias = Extents{false, true, true};
      c.bias_minus_infinity = 0.05;
    }
    check_quantised_case(c);
  }
}

Case packed(int step, Offsets cu_q, Offsets cu_k, std::int64_t tail_q, std::int64_t tail_k) {
  Case c;
  choose_scheme(step, c);
  c.batch = static_cast<std::int64_t>(cu_q.size()) - 1;
  c.heads_q = 4;
  c.heads_kv = step % 2 == 0 ? 2 : 4;
  c.seq_q = cu_q.back() + tail_q;
  c.seq_kv = cu_k.back() + tail_k;
  c.head_dim = step % 2 == 0 ? 64 : 40;
  c.head_dim_v = step % 2 == 0 ? 64 : 24;
  c.cu_seqlens_q = std::move(cu_q);
  c.cu_seqlens_k = std::move(cu_k);
  return c;
}

/// A feature to put on top of sequences.
void add_feature(Case& c, int feature) {
  switch (feature) {
    case 0:
      break;
    case 1:
      c.attention.causal = true;
      break;
    case 2:
      c.attention.window = {20, 7};
      c.attention.alignment = Alignment::top_left;
      break;
    case 3:
      c.sink = true;
      c.mask = Extents{true, false, true};
      break;
    case 4:
      c.alibi_rank = 2;
      c.attention.causal = true;
      c.attention.alignment = Alignment::top_left;
      break;
    case 5:
      c.blocks = BlockPattern{32, 16, false, true, 0.5, 0.5};
      c.attention.softcap = 10;
      break;
    case 6:
      c.blocks = BlockPattern{128, 64, true, false, 0.6, 0.3};
      c.attention.causal = true;
      break;
    default:
      c.bias = Extents{true, true, true};
      c.attention.dropout_p = 0.25;
      break;
  }
}

constexpr int kFeatures = 8;

TEST(QuantisedSequences, Packed) {
  int step = 0;
  for (int feature = 0; feature < kFeatures; ++feature) {
    Case c = packed(step++, {0, 1, 40, 40, 190, 191}, {0, 30, 95, 110, 110, 290}, 0, 0);
    add_feature(c, feature);
    check_quantised_case(c);
    Case tail = packed(step++, {0, 70, 231}, {0, 64, 250}, 9, 21);
    add_feature(tail, feature);
    check_quantised_case(tail);
  }
}

TEST(QuantisedSequences, PackedEmpty) {
  int step = 0;
  for (int feature = 0; feature < kFeatures; ++feature) {
    for (const Offsets& keys : {Offsets{0, 0, 0}, Offsets{0, 0, 33}}) {
      Case c = packed(step++, {0, 20, 45}, keys, 0, 5);
      add_feature(c, feature);
      check_quantised_case(c);
    }
    Case no_queries = packed(step++, {0, 0, 0}, {0, 10, 30}, 6, 0);
    add_feature(no_queries, feature);
    check_quantised_case(no_queries);
  }
  check_quantised_case(packed(0, {0}, {0}, 12, 13));
  check_quantised_case(packed(0, {0}, {0}, 0, 0));
}

TEST(QuantisedSequences, UsedLengths) {
  int step = 0;
  for (int feature = 0; feature < kFeatures; ++feature) {
    Case both = packed(step, {0, 70, 231, 240}, {0, 64, 250, 271}, 3, 2);
    both.q_lens = {50, 161, 0};
    both.kv_lens = {64, 117, 20};
    if (feature % 3 == 1) both.q_lens.clear();
    if (feature % 3 == 2) both.kv_lens.clear();
    add_feature(both, feature);
    check_quantised_case(both);
    for (int which = 1; which < 4; ++which) {
      Case c;
      choose_scheme(step++, c);
      c.batch = 4;
      c.heads_kv = which == 2 ? 1 : 2;
      c.seq_q = 197;
      c.seq_kv = 150;
      if ((which & 1) != 0) c.kv_lens = {150, 0, 33, 129};
      if ((which & 2) != 0) c.q_lens = {197, 140, 1, 0};
      add_feature(c, feature);
      check_quantised_case(c);
    }
  }
}

TEST(QuantisedSequences, ManyShortOnes) {
  Offsets cu_q{0}, cu_k{0};
  Random random(11);
  for (int b = 0; b < 40; ++b) {
    cu_q.push_back(cu_q.back() + static_cast<std::int32_t>(random.below(12)));
    cu_k.push_back(cu_k.back() + static_cast<std::int32_t>(random.below(20)));
  }
  for (int step = 0; step < 4; ++step) {
    Case c = packed(step, cu_q, cu_k, 1, 1);
    c.attention.causal = step >= 2;
    check_quantised_case(c);
  }
}

TEST(QuantisedBlockMasks, SizesAndDensities) {
  int step = 0;
  for (std::int64_t block_q : {16, 48, 64, 128}) {
    for (std::int64_t block_kv : {32, 64, 80, 128}) {
      Case c = base(step);
      c.seq_q = 330;
      c.seq_kv = 383;
      c.heads_q = 2;
      constexpr double kDensities[] = {0.5, 0.2, 0.05, 1.0, 0.0};
      c.blocks = BlockPattern{block_q,
                              block_kv,
                              step % 2 == 1,
                              step % 3 == 1,
                              kDensities[step % 5],
                              step % 4 == 0 ? 0.0 : 0.4};
      c.attention.causal = step++ % 4 == 3;
      check_quantised_case(c);
    }
  }
}

TEST(QuantisedLayouts, OfEveryDtypeAndKind) {
  int step = 0;
  for (LayoutKind layout : {LayoutKind::bshd, LayoutKind::padded, LayoutKind::reversed,
                            LayoutKind::packed_qkv, LayoutKind::broadcast_kv}) {
    for (DType dtype : kDtypes) {
      for (std::int64_t head_dim : {64, 59}) {
        Case c;
        choose_scheme(step, c);
        c.dtype = dtype;
        c.layout = layout;
        c.seq_q = layout == LayoutKind::packed_qkv ? 133 : 170;
        c.seq_kv = 133;
        c.heads_q = 4;
        c.heads_kv = step % 2 == 0 ? 2 : 4;
        c.head_dim = c.head_dim_v = head_dim;
        c.attention.causal = step++ % 3 == 0;
        check_quantised_case(c);
      }
    }
  }
}

TEST(QuantisedLayouts, OfPackedSequences) {
  int step = 0;
  for (LayoutKind layout : {LayoutKind::bshd, LayoutKind::padded, LayoutKind::reversed}) {
    for (bool causal : {false, true}) {
      Case c = packed(step++, {0, 33, 33, 190}, {0, 50, 70, 271}, 3, 0);
      c.layout = layout;
      c.attention.causal = causal;
      check_quantised_case(c);
    }
  }
}

/// Without an LSE nothing else changes.
TEST(QuantisedLayouts, AnLseThatIsNotAskedForChangesNothing) {
  for (int step = 0; step < 8; ++step) {
    const Case c = base(step);
    const Workload w = make_workload(c);
    for (const std::string& row : rows_under_test(c)) {
      const Results both = make_results(c);
      ASSERT_TRUE(run_case(c, w, both, row).status.ok());
      Results o_alone = make_results(c);
      o_alone.lse = {};
      ASSERT_TRUE(run_case(c, w, o_alone, row).status.ok());
      EXPECT_TRUE(o_alone.o.same_bits(both.o)) << row << " " << c.describe();
    }
  }
}

}  // namespace
}  // namespace tessera::test
