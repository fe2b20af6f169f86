// Positional and dense masks, biases and everything else that acts on a score, one at a time and in
// the combinations that share code.
#include <gtest/gtest.h>

#include <utility>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};

Case base(int step) {
  Case c;
  c.dtype = kDtypes[step % 3];
  c.heads_kv = step % 2 + 1;
  c.seq_q = 113;
  c.seq_kv = 203;
  c.head_dim = 48;
  c.head_dim_v = 32;
  return c;
}

TEST(Masks, CausalOnBothSidesOfTheDiagonal) {
  const std::pair<std::int64_t, std::int64_t> shapes[] = {{1, 1},   {1, 200}, {200, 1},  {64, 64},
                                                          {65, 63}, {63, 65}, {200, 70}, {70, 200}};
  int step = 0;
  for (const auto& [seq_q, seq_kv] : shapes) {
    for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
      Case c = base(step++);
      c.seq_q = seq_q;
      c.seq_kv = seq_kv;
      c.attention.causal = true;
      c.attention.alignment = alignment;
      check_case(c);
    }
  }
}

TEST(Masks, Windows) {
  const Window windows[] = {{0, 0},   {0, -1},  {-1, 0},  {1, 0},     {0, 1},
                            {16, 16}, {63, 0},  {5, 70},  {70, 5},    {-1, 20},
                            {20, -1}, {300, 0}, {0, 300}, {127, 128}, {200, 200}};
  int step = 0;
  for (const Window& window : windows) {
    for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
      Case c = base(step);
      if (step % 5 == 1) std::swap(c.seq_q, c.seq_kv);
      c.attention.window = window;
      c.attention.alignment = alignment;
      c.attention.causal = step++ % 3 == 2;
      check_case(c);
    }
  }
}

TEST(Masks, DenseMaskOfEveryExtent) {
  for (int extents = 0; extents < 8; ++extents) {
    Case c = base(extents);
    c.mask = Extents{(extents & 1) != 0, (extents & 2) != 0, (extents & 4) != 0};
    c.attention.causal = extents % 3 == 0;
    check_case(c);
  }
}

TEST(Masks, RowsWithNothingToAttendTo) {
  for (int step = 0; step < 6; ++step) {
    Case c = base(step);
    c.mask = Extents{};
    c.mask_empty_rows = step < 3 ? 0.6 : 1;
    c.sink = step % 2 == 1;
    c.d_lse = step % 2 == 0;
    check_case(c);
  }
  // Bottom-right causal with more queries than keys: the first rows stand before every key.
  Case c = base(0);
  std::swap(c.seq_q, c.seq_kv);
  c.attention.causal = true;
  c.d_lse = true;
  check_case(c);
}

TEST(Masks, BiasOfEveryExtent) {
  for (int extents = 0; extents < 8; ++extents) {
    for (bool wide : {false, true}) {
      Case c = base(extents + (wide ? 1 : 0));
      c.bias = Extents{(extents & 1) != 0, (extents & 2) != 0, (extents & 4) != 0};
      c.bias_f32 = wide;
      c.attention.causal = extents % 3 == 1;
      check_case(c);
    }
  }
}

TEST(Masks, BiasOfMinusInfinity) {
  for (int step = 0; step < 6; ++step) {
    Case c = base(step);
    c.bias = Extents{step % 2 == 0, true, true};
    c.bias_minus_infinity = step < 3 ? 0.3 : 1;
    c.bias_f32 = step % 2 == 1;
    c.sink = step == 5;
    check_case(c);
  }
}

TEST(Masks, Alibi) {
  int step = 0;
  for (int rank : {1, 2}) {
    for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
      for (bool causal : {false, true}) {
        Case c = base(step++);
        c.alibi_rank = rank;
        c.attention.alignment = alignment;
        c.attention.causal = causal;
        check_case(c);
      }
    }
  }
}

TEST(Masks, Softcap) {
  int step = 0;
  for (double cap : {0.5, 5.0, 30.0, 1000.0}) {
    Case c = base(step++);
    c.attention.softcap = cap;
    c.logits = 3;
    c.bias = step % 2 == 0 ? std::optional<Extents>(Extents{}) : std::nullopt;
    c.attention.causal = step % 2 == 1;
    check_case(c);
  }
}

TEST(Masks, Sink) {
  for (int step = 0; step < 6; ++step) {
    Case c = base(step);
    c.sink = true;
    c.d_lse = step % 2 == 0;
    c.attention.causal = step % 2 == 1;
    if (step >= 3) c.attention.dropout_p = 0.2;
    check_case(c);
  }
}

TEST(Masks, Dropout) {
  int step = 0;
  for (double p : {0.0, 0.1, 0.5, 0.95}) {
    for (bool causal : {false, true}) {
      Case c = base(step++);
      c.attention.dropout_p = p;
      c.attention.causal = causal;
      c.d_lse = causal;
      check_case(c);
    }
  }
}

TEST(Masks, ScaleOfAnySign) {
  int step = 0;
  for (double scale : {1.0, -0.3, 0.0, 1e-3}) {
    Case c = base(step++);
    c.attention.scale = scale;
    c.logits = scale == 0 ? 1 : std::abs(scale) * 7;
    check_case(c);
  }
}

TEST(Masks, EverythingAtOnce) {
  for (int step = 0; step < 6; ++step) {
    Case c = base(step);
    c.heads_q = 6;
    c.heads_kv = step % 2 == 0 ? 1 : 3;
    c.attention.causal = true;
    c.attention.window = {90, -1};
    c.attention.softcap = 20;
    c.attention.dropout_p = 0.15;
    c.bias = Extents{false, true, true};
    c.bias_minus_infinity = 0.05;
    c.mask = Extents{true, false, true};
    c.alibi_rank = step % 2 + 1;
    c.sink = true;
    c.kv_lens = {150, 203};
    c.q_lens = {113, 60};
    c.d_lse = true;
    if (step >= 3) c.blocks = BlockPattern{32, 48, true, true, 0.6, 0.5};
    check_case(c);
  }
}

}  // namespace
}  // namespace tessera::test
