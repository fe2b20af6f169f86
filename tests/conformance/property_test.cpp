// Random problems, and what must hold between problems whatever their inputs are.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};

Extents random_extents(Random& random) {
  return {random.chance(0.5), random.chance(0.5), random.chance(0.6)};
}

/// Offsets of `count` sequences whose lengths add up to at most `tokens`.
std::vector<std::int32_t> random_offsets(Random& random, std::int64_t count, std::int64_t tokens) {
  std::vector<std::int32_t> offsets(count + 1);
  for (std::int64_t b = 1; b <= count; ++b) {
    offsets[b] = static_cast<std::int32_t>(random.below(tokens + 1));
  }
  std::sort(offsets.begin(), offsets.end());
  return offsets;
}

void random_lengths(Random& random, Case& c) {
  if (random.chance(0.3)) {
    c.batch = 1 + random.below(4);
    c.cu_seqlens_q = random_offsets(random, c.batch, c.seq_q);
    c.cu_seqlens_k = random_offsets(random, c.batch, c.seq_kv);
  }
  for (std::int64_t b = 0, q = 0, kv = 0; b < c.batch; ++b) {
    q = c.varlen() ? c.cu_seqlens_q[b + 1] - c.cu_seqlens_q[b] : c.seq_q;
    kv = c.varlen() ? c.cu_seqlens_k[b + 1] - c.cu_seqlens_k[b] : c.seq_kv;
    c.q_lens.push_back(static_cast<std::int32_t>(random.below(q + 1)));
    c.kv_lens.push_back(static_cast<std::int32_t>(random.below(kv + 1)));
  }
  if (random.chance(0.7)) c.q_lens.clear();
  if (random.chance(0.7)) c.kv_lens.clear();
}

Case random_case(Random& random) {
  Case c;
  c.dtype = kDtypes[random.below(3)];
  c.batch = 1 + random.below(2);
  c.heads_kv = 1 + random.below(3);
  c.heads_q = c.heads_kv * (1 + random.below(3));
  c.seq_q = 1 + random.below(random.chance(0.5) ? 24 : 180);
  c.seq_kv = 1 + random.below(random.chance(0.5) ? 24 : 240);
  c.head_dim = 1 + random.below(random.chance(0.8) ? 96 : 300);
  c.head_dim_v = random.chance(0.5) ? c.head_dim : 1 + random.below(160);
  random_lengths(random, c);
  c.attention.causal = random.chance(0.4);
  c.attention.alignment = random.chance(0.5) ? Alignment::bottom_right : Alignment::top_left;
  if (random.chance(0.3)) c.attention.window = {random.below(90) - 1, random.below(90) - 1};
  if (random.chance(0.2)) c.attention.softcap = 0.5 + 40 * random.uniform();
  if (random.chance(0.25)) c.attention.dropout_p = 0.9 * random.uniform();
  if (random.chance(0.2)) c.attention.scale = random.normal();
  if (random.chance(0.3)) c.bias = random_extents(random);
  c.bias_f32 = random.chance(0.3);
  c.bias_minus_infinity = random.chance(0.3) ? 0.3 : 0;
  if (random.chance(0.3)) c.mask = random_extents(random);
  c.alibi_rank = random.chance(0.2) ? static_cast<int>(1 + random.below(2)) : 0;
  c.sink = random.chance(0.25);
  if (random.chance(0.3)) {
    c.blocks =
        BlockPattern{16 * (1 + random.below(8)), 16 * (1 + random.below(8)), random.chance(0.5),
                     random.chance(0.5),         random.uniform(),           random.uniform()};
  }
  c.layout = std::array{LayoutKind::contiguous, LayoutKind::bshd, LayoutKind::padded,
                        LayoutKind::reversed}[random.below(4)];
  c.logits = random.chance(0.2) ? 50 : 1;
  c.d_lse = random.chance(0.4);
  return c;
}

TEST(Properties, RandomProblems) {
  Random random(20240607);
  for (int x = 0; x < 150; ++x) check_case(random_case(random));
}

/// Copies keys and values (and the mask's and bias's columns) to the places that `order` gives.
Workload with_keys_in_order(const Workload& w, const std::vector<std::int64_t>& order) {
  Workload out = w;
  for (Tensor Workload::*member : {&Workload::k, &Workload::v}) {
    const Tensor& from = w.*member;
    Tensor to = from.converted(from.dtype());
    const std::int64_t last = from.size(3), keys = from.size(2);
    for (std::int64_t x = 0; x < from.count(); ++x) {
      const std::int64_t d = x % last, j = x / last % keys, head = x / last / keys;
      to.set((head * keys + order[j]) * last + d, from.get(x));
    }
    out.*member = to;
  }
  for (Tensor Workload::*member : {&Workload::bias, &Workload::mask}) {
    const Tensor& from = w.*member;
    Tensor to = from.converted(from.dtype());
    for (std::int64_t x = 0; x < from.count(); ++x) {
      const std::int64_t j = x % from.size(3);
      to.set(x - j + order[j], from.get(x));
    }
    out.*member = to;
  }
  return out;
}

TEST(Properties, OrderOfKeysDoesNotMatter) {
  for (DType dtype : kDtypes) {
    Case c;
    c.dtype = dtype;
    c.seq_q = 70;
    c.seq_kv = 150;
    c.bias = Extents{};
    c.mask = Extents{};
    const Workload w = make_workload(c);
    std::vector<std::int64_t> order(c.seq_kv);
    std::iota(order.begin(), order.end(), 0);
    Random random(5);
    for (std::int64_t j = c.seq_kv - 1; j > 0; --j) std::swap(order[j], order[random.below(j + 1)]);
    const Workload permuted = with_keys_in_order(w, order);
    const Tolerances t = tolerances(c, w);
    for (const std::string& row : rows_under_test(c)) {
      const Results a = make_results(c), b = make_results(c);
      ASSERT_TRUE(run_case(c, w, a, row).status.ok());
      ASSERT_TRUE(run_case(c, permuted, b, row).status.ok());
      EXPECT_LE(largest_difference(a.o, b.o), 2 * t.o) << row;
      EXPECT_LE(largest_difference(a.lse, b.lse), 2 * t.lse) << row;
      EXPECT_LE(largest_difference(a.d_q, b.d_q), 2 * t.d_q) << row;
      for (std::int64_t head = 0; head < 4; ++head) {
        for (std::int64_t j = 0; j < c.seq_kv; ++j) {
          for (std::int64_t d = 0; d < c.head_dim; ++d) {
            const std::int64_t from = (head * c.seq_kv + j) * c.head_dim + d;
            const std::int64_t to = (head * c.seq_kv + order[j]) * c.head_dim + d;
            ASSERT_NEAR(a.d_k.get(from), b.d_k.get(to), 2 * t.d_k) << row;
            ASSERT_NEAR(a.d_v.get(from), b.d_v.get(to), 2 * t.d_v) << row;
          }
        }
      }
    }
  }
}

TEST(Properties, TwoHalvesMergeByTheirLse) {
  Case c;
  c.seq_q = 60;
  c.seq_kv = 170;
  c.backward = false;
  const Workload w = make_workload(c);
  const Tolerances t = tolerances(c, w);
  for (const std::string& row : rows_under_test(c)) {
    const Results whole = make_results(c);
    ASSERT_TRUE(run_case(c, w, whole, row).status.ok());
    Results half[2] = {make_results(c), make_results(c)};
    const std::int64_t split = 71;
    for (int x = 0; x < 2; ++x) {
      Workload part = w;
      part.k = w.k.narrowed(2, x == 0 ? 0 : split, x == 0 ? split : c.seq_kv);
      part.v = w.v.narrowed(2, x == 0 ? 0 : split, x == 0 ? split : c.seq_kv);
      const Status status = run_case(c, part, half[x], row).status;
      ASSERT_TRUE(status.ok()) << status.message();
    }
    for (std::int64_t i = 0; i < whole.lse.count(); ++i) {
      const double a = half[0].lse.get(i), b = half[1].lse.get(i);
      const double m = std::max(a, b);
      const double lse = m + std::log(std::exp(a - m) + std::exp(b - m));
      ASSERT_NEAR(lse, whole.lse.get(i), 2 * t.lse) << row;
      for (std::int64_t d = 0; d < c.head_dim_v; ++d) {
        const std::int64_t x = i * c.head_dim_v + d;
        const double o =
            std::exp(a - lse) * half[0].o.get(x) + std::exp(b - lse) * half[1].o.get(x);
        ASSERT_NEAR(o, whole.o.get(x), 3 * t.o) << row;
      }
    }
  }
}

TEST(Properties, PowersOfTwoScaleExactly) {
  Case c;
  c.seq_q = 50;
  c.seq_kv = 90;
  c.attention.scale = 0.25;
  c.attention.deterministic = true;
  Case halved = c;
  halved.attention.scale = 0.125;
  const Workload w = make_workload(c);
  Workload scaled = w;
  scaled.q = w.q.converted(DType::f32);
  scaled.v = w.v.converted(DType::f32);
  for (std::int64_t x = 0; x < w.q.count(); ++x) scaled.q.set(x, 2 * w.q.get(x));
  for (std::int64_t x = 0; x < w.v.count(); ++x) scaled.v.set(x, 4 * w.v.get(x));
  for (const std::string& row : rows_under_test(c)) {
    const Results a = make_results(c), b = make_results(c);
    ASSERT_TRUE(run_case(c, w, a, row).status.ok());
    ASSERT_TRUE(run_case(halved, scaled, b, row).status.ok());
    EXPECT_TRUE(a.lse.same_bits(b.lse)) << row;
    EXPECT_TRUE(a.d_v.same_bits(b.d_v)) << row;
    for (std::int64_t x = 0; x < a.o.count(); ++x) ASSERT_EQ(4 * a.o.get(x), b.o.get(x)) << row;
    for (std::int64_t x = 0; x < a.d_q.count(); ++x)
      ASSERT_EQ(2 * a.d_q.get(x), b.d_q.get(x)) << row;
    for (std::int64_t x = 0; x < a.d_k.count(); ++x)
      ASSERT_EQ(4 * a.d_k.get(x), b.d_k.get(x)) << row;
  }
}

TEST(Properties, AConstantBiasMovesTheLseAlone) {
  Case c;
  c.seq_q = 40;
  c.seq_kv = 75;
  c.bias = Extents{false, false, false};
  const Workload w = make_workload(c);
  Workload moved = w;
  moved.bias = w.bias.converted(DType::f32);
  for (std::int64_t x = 0; x < w.bias.count(); ++x) moved.bias.set(x, w.bias.get(x) + 3);
  const Tolerances t = tolerances(c, moved);
  for (const std::string& row : rows_under_test(c)) {
    const Results a = make_results(c), b = make_results(c);
    ASSERT_TRUE(run_case(c, w, a, row).status.ok());
    ASSERT_TRUE(run_case(c, moved, b, row).status.ok());
    EXPECT_LE(largest_difference(a.o, b.o), 2 * t.o) << row;
    EXPECT_LE(largest_difference(a.d_bias, b.d_bias), 2 * t.d_bias) << row;
    for (std::int64_t i = 0; i < a.lse.count(); ++i) {
      ASSERT_NEAR(a.lse.get(i) + 3, b.lse.get(i), 2 * t.lse) << row;
    }
  }
}

TEST(Properties, GroupedHeadsAreRepeatedHeads) {
  Case grouped;
  grouped.heads_q = 6;
  grouped.heads_kv = 2;
  grouped.seq_q = 45;
  grouped.seq_kv = 80;
  Case repeated = grouped;
  repeated.heads_kv = 6;
  const Workload w = make_workload(grouped);
  Workload r = w;
  r.k = Tensor(DType::f32, {2, 6, 80, 64});
  r.v = Tensor(DType::f32, {2, 6, 80, 64});
  const std::int64_t head = 80 * 64;
  for (std::int64_t x = 0; x < r.k.count(); ++x) {
    const std::int64_t b = x / head / 6, h = x / head % 6;
    r.k.set(x, w.k.get((b * 2 + h / 3) * head + x % head));
    r.v.set(x, w.v.get((b * 2 + h / 3) * head + x % head));
  }
  const Tolerances t = tolerances(grouped, w);
  for (const std::string& row : rows_under_test(repeated)) {
    const Results a = make_results(grouped), b = make_results(repeated);
    ASSERT_TRUE(run_case(grouped, w, a, row).status.ok());
    ASSERT_TRUE(run_case(repeated, r, b, row).status.ok());
    EXPECT_LE(largest_difference(a.o, b.o), 2 * t.o) << row;
    EXPECT_LE(largest_difference(a.d_q, b.d_q), 2 * t.d_q) << row;
    for (std::int64_t x = 0; x < a.d_k.count(); ++x) {
      const std::int64_t base = (x / head / 2 * 6 + x / head % 2 * 3) * head + x % head;
      double d_k = 0, d_v = 0;
      for (int g = 0; g < 3; ++g) d_k += b.d_k.get(base + g * head);
      for (int g = 0; g < 3; ++g) d_v += b.d_v.get(base + g * head);
      ASSERT_NEAR(a.d_k.get(x), d_k, 4 * t.d_k) << row;
      ASSERT_NEAR(a.d_v.get(x), d_v, 4 * t.d_v) << row;
    }
  }
}

TEST(Properties, ACausalBlockMaskIsTheCausalMask) {
  for (Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
    Case c;
    c.seq_q = 150;
    c.seq_kv = 210;
    c.attention.causal = true;
    c.attention.alignment = alignment;
    Case blocked = c;
    blocked.attention.causal = false;
    const Workload w = make_workload(c);
    Workload with_blocks = w;
    Result<BlockMask> mask = BlockMask::causal({150, 210, 64, 32}, alignment);
    ASSERT_TRUE(mask.ok());
    with_blocks.block_mask.emplace(std::move(mask).value());
    with_blocks.block_view = with_blocks.block_mask->view();
    const Tolerances t = tolerances(c, w);
    for (const std::string& row : rows_under_test(c)) {
      const Results a = make_results(c), b = make_results(c);
      ASSERT_TRUE(run_case(c, w, a, row).status.ok());
      ASSERT_TRUE(run_case(blocked, with_blocks, b, row).status.ok());
      EXPECT_LE(largest_difference(a.o, b.o), 2 * t.o) << row;
      EXPECT_LE(largest_difference(a.d_q, b.d_q), 2 * t.d_q) << row;
      EXPECT_LE(largest_difference(a.d_k, b.d_k), 2 * t.d_k) << row;
      EXPECT_LE(largest_difference(a.d_v, b.d_v), 2 * t.d_v) << row;
    }
  }
}

}  // namespace
}  // namespace tessera::test
