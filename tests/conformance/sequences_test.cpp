// Packed sequences and used lengths: empty sequences, tails that belong to nobody, memory behind
// the lengths full of NaN.
#include <gtest/gtest.h>

#include <utility>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};
using Offsets = std::vector<std::int32_t>;

Case packed(int step, Offsets cu_q, Offsets cu_k, std::int64_t tail_q, std::int64_t tail_k) {
  Case c;
  c.dtype = kDtypes[step % 3];
  c.batch = static_cast<std::int64_t>(cu_q.size()) - 1;
  c.heads_q = 4;
  c.heads_kv = step % 2 == 0 ? 2 : 4;
  c.seq_q = cu_q.back() + tail_q;
  c.seq_kv = cu_k.back() + tail_k;
  c.head_dim = 40;
  c.head_dim_v = 24;
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
      c.bias = Extents{true, true, true};
      c.sink = true;
      c.d_lse = true;
      break;
    case 4:
      c.mask = Extents{true, false, true};
      c.attention.dropout_p = 0.25;
      break;
    case 5:
      c.alibi_rank = 2;
      c.attention.causal = true;
      c.attention.alignment = Alignment::top_left;
      break;
    case 6:
      c.blocks = BlockPattern{32, 16, false, true, 0.5, 0.5};
      c.attention.softcap = 10;
      break;
    case 7:
      c.blocks = BlockPattern{48, 64, true, false, 0.6, 0.3};
      c.bias = Extents{false, true, true};
      c.attention.causal = true;
      c.d_lse = true;
      break;
    default:
      c.bias = Extents{false, false, true};
      c.attention.window = {30, 30};
      break;
  }
}

constexpr int kFeatures = 9;

TEST(Sequences, Packed) {
  for (int feature = 0; feature < kFeatures; ++feature) {
    Case c = packed(feature, {0, 1, 40, 40, 150, 151}, {0, 30, 95, 110, 110, 203}, 0, 0);
    add_feature(c, feature);
    check_case(c);
  }
}

TEST(Sequences, PackedWithTailTokens) {
  for (int feature = 0; feature < kFeatures; ++feature) {
    Case c = packed(feature + 1, {0, 70, 131}, {0, 64, 150}, 9, 21);
    add_feature(c, feature);
    check_case(c);
  }
}

TEST(Sequences, PackedEmpty) {
  for (int feature = 0; feature < kFeatures; ++feature) {
    for (const Offsets& keys : {Offsets{0, 0, 0}, Offsets{0, 0, 33}}) {
      Case c = packed(feature, {0, 20, 45}, keys, 0, 5);
      add_feature(c, feature);
      check_case(c);
    }
    Case no_queries = packed(feature, {0, 0, 0}, {0, 10, 30}, 6, 0);
    add_feature(no_queries, feature);
    check_case(no_queries);
  }
}

TEST(Sequences, PackedNone) {
  Case c = packed(0, {0}, {0}, 12, 13);
  check_case(c);
  c = packed(0, {0}, {0}, 0, 0);
  check_case(c);
}

TEST(Sequences, PackedAndUsedLengths) {
  for (int feature = 0; feature < kFeatures; ++feature) {
    Case c = packed(feature, {0, 70, 131, 140}, {0, 64, 150, 171}, 3, 2);
    c.q_lens = {50, 61, 0};
    c.kv_lens = {64, 17, 20};
    if (feature % 3 == 1) c.q_lens.clear();
    if (feature % 3 == 2) c.kv_lens.clear();
    add_feature(c, feature);
    check_case(c);
  }
}

TEST(Sequences, UsedLengths) {
  for (int feature = 0; feature < kFeatures; ++feature) {
    for (int which = 1; which < 4; ++which) {
      Case c;
      c.dtype = kDtypes[(feature + which) % 3];
      c.batch = 4;
      c.heads_q = 2;
      c.heads_kv = which == 2 ? 1 : 2;
      c.seq_q = 97;
      c.seq_kv = 150;
      c.head_dim = c.head_dim_v = 32;
      if ((which & 1) != 0) c.kv_lens = {150, 0, 33, 129};
      if ((which & 2) != 0) c.q_lens = {97, 40, 1, 0};
      add_feature(c, feature);
      check_case(c);
    }
  }
}

TEST(Sequences, ManyShortOnes) {
  Offsets cu_q{0}, cu_k{0};
  Random random(11);
  for (int b = 0; b < 40; ++b) {
    cu_q.push_back(cu_q.back() + static_cast<std::int32_t>(random.below(12)));
    cu_k.push_back(cu_k.back() + static_cast<std::int32_t>(random.below(20)));
  }
  for (bool causal : {false, true}) {
    Case c = packed(0, cu_q, cu_k, 1, 1);
    c.attention.causal = causal;
    check_case(c);
  }
}

}  // namespace
}  // namespace tessera::test
