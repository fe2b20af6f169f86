// Few queries against many keys, as in decoding: every feature, where rows share out the keys.
#include <gtest/gtest.h>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr int kFeatures = 13;

/// Puts one feature on top of a case of batched sequences.
void add_feature(Case& c, int feature) {
  const auto kv = static_cast<std::int32_t>(c.seq_kv);
  switch (feature) {
    case 0:
      break;
    case 1:
      c.attention.causal = true;
      break;
    case 2:
      c.attention.causal = true;
      c.attention.alignment = Alignment::top_left;
      break;
    case 3:
      c.attention.window = {kv / 2, 3};
      break;
    case 4:
      c.attention.window = {5, -1};
      c.sink = true;
      break;
    case 5:
      c.bias = Extents{true, true, true};
      c.bias_minus_infinity = 0.3;
      break;
    case 6:
      c.mask = Extents{false, true, true};
      c.mask_empty_rows = 0.5;
      break;
    case 7:
      c.alibi_rank = 2;
      c.attention.causal = true;
      break;
    case 8:
      c.attention.softcap = 15;
      c.logits = 10;
      break;
    case 9:
      c.attention.dropout_p = 0.2;
      break;
    case 10:
      c.kv_lens = {kv / 3, 0};
      c.q_lens = {static_cast<std::int32_t>(c.seq_q), 0};
      break;
    case 11:
      c.blocks = BlockPattern{16, 64, true, true, 0.3, 0.5};
      break;
    default:
      c.logits = 2500;
      c.layout = LayoutKind::padded;
      break;
  }
}

TEST(Decode, EveryFeature) {
  constexpr std::int64_t kQueries[] = {1, 2, 5, 16};
  constexpr std::int64_t kKeys[] = {7, 300, 1025, 3000};
  constexpr std::int64_t kGroups[] = {1, 4, 3, 8};
  constexpr std::int64_t kHeadDims[] = {64, 128, 40, 192, 256, 111};
  constexpr DType kDtypes[] = {DType::f16, DType::bf16, DType::f16, DType::bf16, DType::f32};
  int step = 0;
  for (int feature = 0; feature < kFeatures; ++feature) {
    for (int shape = 0; shape < 4; ++shape, ++step) {
      Case c;
      c.dtype = kDtypes[step % 5];
      c.seq_q = kQueries[shape];
      c.seq_kv = kKeys[(shape + feature) % 4];
      const std::int64_t group = kGroups[(shape + feature / 2) % 4];
      c.heads_kv = group < 4 ? 2 : 1;
      c.heads_q = group * c.heads_kv;
      c.head_dim = c.head_dim_v = kHeadDims[step % 6];
      if (step % 7 == 3) c.head_dim_v = 72;
      if (step % 3 == 1) c.layout = LayoutKind::bshd;
      c.backward = false;
      add_feature(c, feature);
      check_case(c);
    }
  }
}

/// To 64 queries, which rows may pack side by side with those of other heads.
TEST(Decode, ShortQueriesOfSeveralHeads) {
  constexpr std::int64_t kQueries[] = {1, 7, 16, 17, 33, 64};
  constexpr std::int64_t kKeys[] = {513, 1025, 2000, 3000};
  constexpr std::int64_t kGroups[] = {8, 1, 5, 2, 16};
  constexpr std::int64_t kHeadDims[] = {128, 64, 72, 40};
  constexpr int kPositional[] = {0, 1, 2, 3, 10, 12};
  int step = 0;
  for (int feature : kPositional) {
    for (std::int64_t queries : kQueries) {
      Case c;
      c.dtype = step % 3 == 2 ? DType::f16 : DType::bf16;
      c.seq_q = queries;
      c.seq_kv = kKeys[step % 4];
      const std::int64_t group = kGroups[step % 5];
      c.heads_kv = group > 4 ? 1 : 2;
      c.heads_q = group * c.heads_kv;
      c.head_dim = c.head_dim_v = kHeadDims[step / 2 % 4];
      if (step % 7 == 3) c.head_dim_v = 56;
      if (step % 2 == 1) c.layout = LayoutKind::bshd;
      c.backward = false;
      add_feature(c, feature);
      check_case(c);
      ++step;
    }
  }
}

TEST(Decode, PackedSequencesOfUnequalLengths) {
  for (int step = 0; step < 6; ++step) {
    Case c;
    c.dtype = step % 2 == 0 ? DType::bf16 : DType::f16;
    c.batch = 4;
    c.heads_q = 8;
    c.heads_kv = step % 3 == 0 ? 8 : 1;
    c.cu_seqlens_q = {0, 1, 1, 10, 12};
    c.cu_seqlens_k = {0, 1500, 1600, 1600, 4000};
    c.seq_q = 13;
    c.seq_kv = 4100;
    c.head_dim = c.head_dim_v = 64;
    c.attention.causal = step % 2 == 1;
    c.sink = step == 2;
    c.backward = false;
    check_case(c);
  }
}

/// A gradient for few queries: rows that share out the keys of the forward pass leave it to others.
TEST(Decode, TheBackwardPassOfFewQueries) {
  for (int feature = 0; feature < kFeatures; feature += 3) {
    Case c;
    c.dtype = feature % 2 == 0 ? DType::bf16 : DType::f16;
    c.seq_q = 3;
    c.seq_kv = 1100;
    c.heads_q = 8;
    c.d_lse = true;
    add_feature(c, feature);
    check_case(c);
  }
}

}  // namespace
}  // namespace tessera::test
