// Where sequences lie, and which keys positional masks leave to a query.
#include "core/sequences.hpp"

#include <gtest/gtest.h>

#include "support/tensor.hpp"

namespace tessera {
namespace {

TEST(Sequences, BatchedWithoutLengths) {
  Problem p;
  p.batch = 3;
  p.seq_q = 10;
  p.seq_kv = 25;
  const Sequence s = sequence_of(p, {}, 2);
  EXPECT_EQ(s.q_begin, 0);
  EXPECT_EQ(s.kv_begin, 0);
  EXPECT_EQ(s.q_len, 10);
  EXPECT_EQ(s.kv_len, 25);
  EXPECT_EQ(s.shift, 15);
  p.alignment = Alignment::top_left;
  EXPECT_EQ(sequence_of(p, {}, 2).shift, 0);
}

TEST(Sequences, UsedLengthsAlign) {
  Problem p;
  p.batch = 2;
  p.seq_q = 10;
  p.seq_kv = 25;
  p.q_lens = p.kv_lens = true;
  const test::Tensor q_lens = test::Tensor::of_i32({4, 10});
  const test::Tensor kv_lens = test::Tensor::of_i32({3, 25});
  Inputs inputs;
  inputs.q_lens = q_lens.view();
  inputs.kv_lens = kv_lens.view();
  const Sequence s = sequence_of(p, inputs, 0);
  EXPECT_EQ(s.q_rows, 10);
  EXPECT_EQ(s.kv_rows, 25);
  EXPECT_EQ(s.q_len, 4);
  EXPECT_EQ(s.kv_len, 3);
  EXPECT_EQ(s.shift, -1);
}

TEST(Sequences, Packed) {
  Problem p;
  p.batch = 3;
  p.varlen = true;
  p.seq_q = 12;
  p.seq_kv = 20;
  const test::Tensor cu_q = test::Tensor::of_i32({0, 5, 5, 11});
  const test::Tensor cu_k = test::Tensor::of_i32({0, 7, 9, 20});
  Inputs inputs;
  inputs.cu_seqlens_q = cu_q.view();
  inputs.cu_seqlens_k = cu_k.view();
  const Sequence empty = sequence_of(p, inputs, 1);
  EXPECT_EQ(empty.q_begin, 5);
  EXPECT_EQ(empty.q_len, 0);
  EXPECT_EQ(empty.kv_begin, 7);
  EXPECT_EQ(empty.kv_len, 2);
  const Sequence last = sequence_of(p, inputs, 2);
  EXPECT_EQ(last.q_begin, 5);
  EXPECT_EQ(last.q_len, 6);
  EXPECT_EQ(last.kv_begin, 9);
  EXPECT_EQ(last.kv_len, 11);
  EXPECT_EQ(last.shift, 5);
}

/// visible_keys is one range; element by element it must say what DESIGN's inequalities say.
TEST(Sequences, VisibleKeysIsThePredicatesRange) {
  Problem p;
  p.batch = 1;
  for (int causal = 0; causal < 2; ++causal) {
    for (std::int64_t left = -1; left < 4; ++left) {
      for (std::int64_t right = -1; right < 4; ++right) {
        for (std::int64_t q_len : {1, 4, 9}) {
          for (std::int64_t kv_len : {0, 1, 6, 12}) {
            for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
              p.causal = causal == 1;
              p.window = {left, right};
              p.alignment = alignment;
              p.seq_q = q_len;
              p.seq_kv = kv_len;
              const Sequence s = sequence_of(p, {}, 0);
              const std::int64_t a = alignment == Alignment::bottom_right ? kv_len - q_len : 0;
              for (std::int64_t i = 0; i < q_len; ++i) {
                const KeyRange range = visible_keys(p, s, i);
                for (std::int64_t j = 0; j < kv_len; ++j) {
                  const bool visible = (causal == 0 || j <= i + a) &&
                                       (left < 0 || i + a - left <= j) &&
                                       (right < 0 || j <= i + a + right);
                  ASSERT_EQ(j >= range.begin && j < range.end, visible)
                      << "i " << i << " j " << j << " window " << left << "," << right;
                }
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tessera
