// Ragged sequence lengths and head dims, on purpose: every tail of every tile.
#include <gtest/gtest.h>

#include <utility>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

using Shape = std::pair<std::int64_t, std::int64_t>;

constexpr Shape kSmallShapes[] = {{1, 1},     {1, 3},    {2, 1},   {64, 128}, {113, 203},
                                  {128, 217}, {239, 1},  {799, 3}, {511, 1},  {108, 256},
                                  {257, 128}, {17, 400}, {3, 1}};
constexpr std::int64_t kHeadDims[] = {16, 24, 32, 40, 48, 59, 64, 80, 96, 111, 128, 160, 192, 256};
constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};

Case shaped(Shape shape, std::int64_t head_dim) {
  Case c;
  c.batch = 1;
  c.seq_q = shape.first;
  c.seq_kv = shape.second;
  c.head_dim = c.head_dim_v = head_dim;
  return c;
}

TEST(Shapes, RaggedLengths) {
  int step = 0;
  for (const Shape& shape : kSmallShapes) {
    for (int mask = 0; mask < 4; ++mask, ++step) {
      Case c = shaped(shape, step % 3 == 0 ? 64 : 40);
      c.dtype = kDtypes[step % 3];
      c.attention.causal = mask == 1 || mask == 2;
      c.attention.alignment = mask == 2 ? Alignment::top_left : Alignment::bottom_right;
      if (mask == 3) c.attention.window = {31, 12};
      c.d_lse = step % 2 == 0;
      check_case(c);
    }
  }
}

TEST(Shapes, LongRaggedLengths) {
  if (reduced()) GTEST_SKIP() << "too long for a reduced sweep";
  const Shape shapes[] = {{1023, 1024}, {1024, 1023}, {2048, 2048}};
  int step = 0;
  for (const Shape& shape : shapes) {
    Case c = shaped(shape, 64);
    c.heads_q = c.heads_kv = 1;
    c.dtype = kDtypes[step++ % 3];
    c.attention.causal = step % 2 == 1;
    check_case(c);
  }
}

TEST(Shapes, Longest) {
  if (reduced()) GTEST_SKIP() << "too long for a reduced sweep";
  Case c = shaped({4224, 4224}, 64);
  c.heads_q = c.heads_kv = 1;
  c.attention.causal = true;
  check_case(c);
}

TEST(Shapes, HeadDims) {
  int step = 0;
  for (std::int64_t head_dim : kHeadDims) {
    for (DType dtype : kDtypes) {
      Case c = shaped({67, 130}, head_dim);
      c.dtype = dtype;
      c.attention.causal = step++ % 2 == 0;
      check_case(c);
    }
  }
}

TEST(Shapes, LargestHeadDims) {
  const std::pair<std::int64_t, std::int64_t> dims[] = {{512, 512}, {320, 320}, {384, 511}};
  for (const auto& [head_dim, head_dim_v] : dims) {
    Case c = shaped({37, 75}, head_dim);
    c.head_dim_v = head_dim_v;
    check_case(c);
  }
}

TEST(Shapes, TinyHeadDims) {
  for (std::int64_t head_dim : {1, 2, 3, 5, 8, 15}) check_case(shaped({33, 50}, head_dim));
}

TEST(Shapes, ValuesOfAnotherHeadDim) {
  const std::pair<std::int64_t, std::int64_t> dims[] = {{64, 128}, {192, 128},     {40, 59},
                                                        {59, 40},  {128, 1},       {1, 128},
                                                        {16, 512}, {576 - 64, 16}, {96, 111}};
  int step = 0;
  for (const auto& [head_dim, head_dim_v] : dims) {
    Case c = shaped({70, 97}, head_dim);
    c.head_dim_v = head_dim_v;
    c.dtype = kDtypes[step++ % 3];
    check_case(c);
  }
}

TEST(Shapes, NothingAtAll) {
  for (int dimension = 0; dimension < 3; ++dimension) {
    for (bool sink : {false, true}) {
      Case c = shaped({5, 7}, 16);
      (dimension == 0 ? c.batch : dimension == 1 ? c.seq_q : c.seq_kv) = 0;
      c.sink = sink;
      c.attention.causal = sink;
      check_case(c);
    }
  }
}

TEST(Shapes, GroupedHeads) {
  const std::pair<std::int64_t, std::int64_t> heads[] = {{1, 1},  {2, 1}, {6, 1}, {4, 2},
                                                         {12, 2}, {6, 3}, {5, 5}};
  int step = 0;
  for (const auto& [heads_q, heads_kv] : heads) {
    Case c = shaped({70, 90}, 32);
    c.batch = 2;
    c.heads_q = heads_q;
    c.heads_kv = heads_kv;
    c.dtype = kDtypes[step % 3];
    c.attention.causal = step++ % 2 == 1;
    check_case(c);
  }
}

}  // namespace
}  // namespace tessera::test
