// Block masks: shared, per head, per batch; full and partial blocks; block sizes that differ from
// each other and from any kernel's tile. Key blocks that nobody visits hold NaN.
#include <gtest/gtest.h>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr std::int64_t kSizes[] = {16, 32, 48, 64, 80, 128};

Case base(int step, std::int64_t block_q, std::int64_t block_kv) {
  Case c;
  c.dtype = kDtypes[step % 3];
  c.heads_q = 2;
  c.heads_kv = step % 2 == 0 ? 2 : 1;
  c.seq_q = 230;
  c.seq_kv = 283;
  c.head_dim = c.head_dim_v = 32;
  c.blocks = BlockPattern{block_q, block_kv};
  return c;
}

TEST(BlockMasks, EverySize) {
  int step = 0;
  for (std::int64_t block_q : kSizes) {
    for (std::int64_t block_kv : kSizes) {
      Case c = base(step, block_q, block_kv);
      c.blocks->per_batch = step % 2 == 1;
      c.blocks->per_head = step % 3 == 1;
      c.attention.causal = step++ % 4 == 3;
      check_case(c);
    }
  }
}

TEST(BlockMasks, SharedPerHeadPerBatch) {
  int step = 0;
  for (bool per_batch : {false, true}) {
    for (bool per_head : {false, true}) {
      for (double partial : {0.0, 0.5, 1.0}) {
        Case c = base(step++, 64, 32);
        c.blocks->per_batch = per_batch;
        c.blocks->per_head = per_head;
        c.blocks->partial = partial;
        c.d_lse = partial == 0.5;
        check_case(c);
      }
    }
  }
}

TEST(BlockMasks, Densities) {
  int step = 0;
  for (double density : {0.0, 0.05, 0.2, 0.9, 1.0}) {
    Case c = base(step++, 32, 64);
    c.blocks->density = density;
    c.sink = step % 2 == 0;
    check_case(c);
  }
}

TEST(BlockMasks, ComposeWithEveryOtherMask) {
  for (int feature = 0; feature < 10; ++feature) {
    Case c = base(feature, feature % 2 == 0 ? 48 : 128, feature % 3 == 0 ? 128 : 16);
    c.blocks->per_head = feature % 2 == 0;
    switch (feature) {
      case 0:
        c.attention.causal = true;
        break;
      case 1:
        c.attention.causal = true;
        c.attention.alignment = Alignment::top_left;
        break;
      case 2:
        c.attention.window = {40, 9};
        break;
      case 3:
        c.mask = Extents{true, true, true};
        break;
      case 4:
        c.bias = Extents{true, true, true};
        break;
      case 5:
        c.bias = Extents{false, false, true};
        c.bias_minus_infinity = 0.2;
        break;
      case 6:
        c.alibi_rank = 1;
        break;
      case 7:
        c.attention.dropout_p = 0.3;
        break;
      case 8:
        c.kv_lens = {200, 31};
        c.q_lens = {230, 99};
        break;
      default:
        c.attention.softcap = 5;
        c.sink = true;
        c.attention.window = {-1, 0};
        break;
    }
    check_case(c);
  }
}

TEST(BlockMasks, FewQueriesManyKeys) {
  for (std::int64_t seq_q : {1, 2, 17}) {
    Case c = base(0, 16, 64);
    c.seq_q = seq_q;
    c.seq_kv = 700;
    check_case(c);
  }
}

TEST(BlockMasks, LongSequences) {
  if (reduced()) GTEST_SKIP() << "too long for a reduced sweep";
  Case c = base(0, 128, 128);
  c.batch = 1;
  c.seq_q = c.seq_kv = 1500;
  c.blocks->density = 0.2;
  c.blocks->per_head = true;
  check_case(c);
}

}  // namespace
}  // namespace tessera::test
