// from_blocks, from_elements, from_predicate and from_csr against dense masks, and what they
// reject.
#include <algorithm>

#include "sparse/expand.hpp"
#include "support/random.hpp"

namespace tessera::test {
namespace {

/// A mask of empty, full and mixed blocks in turn at random, different in every plane. Some mixed
/// blocks lack a single element and some have only one.
Dense mixed_elements(const BlockShape& s, std::int64_t planes, std::uint64_t seed) {
  Random random(seed);
  std::vector<int> kind(planes * s.q_blocks() * s.kv_blocks());
  for (int& k : kind) k = static_cast<int>(random.below(5));
  Dense dense(planes * s.seq_q * s.seq_kv);
  std::int64_t at = 0;
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    for (std::int64_t i = 0; i < s.seq_q; ++i) {
      for (std::int64_t j = 0; j < s.seq_kv; ++j) {
        const std::int64_t block = (plane * s.q_blocks() + i / s.block_q) * s.kv_blocks();
        const bool last = (i % s.block_q == s.block_q - 1 || i == s.seq_q - 1) &&
                          (j % s.block_kv == s.block_kv - 1 || j == s.seq_kv - 1);
        switch (kind[block + j / s.block_kv]) {
          case 0:
            dense[at] = 0;
            break;
          case 1:
            dense[at] = 1;
            break;
          case 2:
            dense[at] = last;
            break;
          case 3:
            dense[at] = !last;
            break;
          default:
            dense[at] = random.chance(0.5);
        }
        ++at;
      }
    }
  }
  return dense;
}

void expect_same_arrays(const BlockMask& one, const BlockMask& other) {
  const BlockMaskView a = one.view();
  const BlockMaskView b = other.view();
  ASSERT_EQ(a.entries, b.entries);
  ASSERT_EQ(a.partial_blocks, b.partial_blocks);
  const std::int64_t planes = a.batch * a.heads;
  EXPECT_TRUE(std::equal(a.row_offsets, a.row_offsets + planes * a.q_blocks + 1, b.row_offsets));
  EXPECT_TRUE(std::equal(a.columns, a.columns + a.entries, b.columns));
  EXPECT_TRUE(std::equal(a.bits_index, a.bits_index + a.entries, b.bits_index));
  EXPECT_TRUE(std::equal(a.bits, a.bits + a.partial_blocks * words_per_tile(a), b.bits));
  EXPECT_TRUE(std::equal(a.transposed_offsets, a.transposed_offsets + planes * a.kv_blocks + 1,
                         b.transposed_offsets));
  EXPECT_TRUE(std::equal(a.transposed_rows, a.transposed_rows + a.entries, b.transposed_rows));
  EXPECT_TRUE(
      std::equal(a.transposed_entries, a.transposed_entries + a.entries, b.transposed_entries));
}

Result<BlockMask> rebuilt(const BlockMask& mask) {
  const BlockMaskView m = mask.view();
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  return BlockMask::from_csr(mask.shape(), m.batch, m.heads,
                             {m.row_offsets, size(m.batch * m.heads * m.q_blocks + 1)},
                             {m.columns, size(m.entries)}, {m.bits_index, size(m.entries)},
                             {m.bits, size(m.partial_blocks * words_per_tile(m))});
}

class Builders : public testing::TestWithParam<BlockShape> {};

TEST_P(Builders, FromBlocks) {
  const BlockShape s = GetParam();
  for (const auto& [batch, heads] : {std::pair{1, 1}, {1, 3}, {2, 1}, {2, 2}}) {
    Random random(batch * 10 + heads);
    Dense blocks(batch * heads * s.q_blocks() * s.kv_blocks());
    for (std::uint8_t& block : blocks) block = random.chance(0.4) ? 1 + random.below(255) : 0;
    Dense dense;
    for (std::int64_t plane = 0; plane < batch * heads; ++plane) {
      for (std::int64_t i = 0; i < s.seq_q; ++i) {
        for (std::int64_t j = 0; j < s.seq_kv; ++j) {
          dense.push_back(
              blocks[(plane * s.q_blocks() + i / s.block_q) * s.kv_blocks() + j / s.block_kv] != 0);
        }
      }
    }
    const BlockMask mask = made(BlockMask::from_blocks(s, batch, heads, blocks));
    EXPECT_EQ(mask.view().batch, batch);
    EXPECT_EQ(mask.view().heads, heads);
    EXPECT_EQ(mask.view().partial_blocks, 0);
    expect_mask(mask, dense);
    expect_same_arrays(made(rebuilt(mask)), mask);
  }
}

TEST_P(Builders, FromElements) {
  const BlockShape s = GetParam();
  for (const auto& planes : {std::pair{1, 1}, {1, 2}, {2, 1}, {2, 2}}) {
    const std::int64_t batch = planes.first;
    const std::int64_t heads = planes.second;
    const Dense dense = mixed_elements(s, batch * heads, batch * 10 + heads);
    const BlockMask mask = made(BlockMask::from_elements(s, batch, heads, dense));
    expect_mask(mask, dense);
    expect_same_arrays(made(rebuilt(mask)), mask);
    const BlockMask by_predicate = made(BlockMask::from_predicate(
        s, batch, heads, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
          return dense[((b * heads + h) * s.seq_q + i) * s.seq_kv + j] != 0;
        }));
    expect_same_arrays(by_predicate, mask);
  }
}

TEST_P(Builders, AllAndNothing) {
  const BlockShape s = GetParam();
  const BlockMask all = made(BlockMask::from_predicate(
      s, 1, 1, [](std::int64_t, std::int64_t, std::int64_t, std::int64_t) { return true; }));
  EXPECT_EQ(all.view().partial_blocks, 0);
  EXPECT_EQ(all.view().density(), 1);
  expect_mask(all, Dense(s.seq_q * s.seq_kv, 1));
  const Dense nothing(s.seq_q * s.seq_kv, 0);
  expect_mask(made(BlockMask::from_elements(s, 1, 1, nothing)), nothing);
}

INSTANTIATE_TEST_SUITE_P(RaggedShapes, Builders, testing::ValuesIn(ragged_shapes()));

TEST(Builders, PredicateSeesEveryElementOnce) {
  const BlockShape s{37, 50, 16, 32};
  std::vector<int> seen(2 * 3 * 37 * 50, 0);
  made(BlockMask::from_predicate(
      s, 2, 3, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
        ++seen[((b * 3 + h) * 37 + i) * 50 + j];
        return false;
      }));
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), static_cast<std::ptrdiff_t>(seen.size()));
}

TEST(Builders, MasksMoveAndCopy) {
  BlockMask mask = made(BlockMask::causal({100, 100, 16, 16}));
  const BlockMask copy = mask;
  expect_same_arrays(copy, mask);
  EXPECT_NE(copy.view().columns, mask.view().columns);
  const BlockMask moved = std::move(mask);
  expect_same_arrays(copy, moved);
  EXPECT_EQ(moved.shape().seq_kv, 100);
}

TEST(Builders, BadShapes) {
  const auto build = [](const BlockShape& s, std::int64_t batch = 1, std::int64_t heads = 1) {
    return BlockMask::from_blocks(s, batch, heads, {}).status();
  };
  const std::string block_size = ", expected a positive multiple of 16 below 2^31";
  expect_invalid(build({64, 64, 0, 16}), "shape.block_q: 0" + block_size);
  expect_invalid(build({64, 64, -16, 16}), "shape.block_q: -16" + block_size);
  expect_invalid(build({64, 64, 24, 16}), "shape.block_q: 24" + block_size);
  expect_invalid(build({64, 64, 16, 8}), "shape.block_kv: 8" + block_size);
  expect_invalid(build({64, 64, 16, std::int64_t{1} << 31}),
                 "shape.block_kv: 2147483648" + block_size);
  expect_invalid(build({-1, 64, 16, 16}), "shape.seq_q: -1, expected at least 0 and below 2^31");
  expect_invalid(build({64, std::int64_t{1} << 31, 16, 16}),
                 "shape.seq_kv: 2147483648, expected at least 0 and below 2^31");
  expect_invalid(build({64, 64, 16, 16}, 0), "batch: 0, expected at least 1 and below 2^31");
  expect_invalid(build({64, 64, 16, 16}, 1, -2), "heads: -2, expected at least 1 and below 2^31");
  expect_invalid(build({64, 64, 16, 16}, 1, std::int64_t{1} << 31),
                 "heads: 2147483648, expected at least 1 and below 2^31");
  expect_invalid(build({64, 64, 16, 16}, INT32_MAX, INT32_MAX),
                 "batch * heads * q_blocks * kv_blocks: 2147483647 * 2147483647 * 4 * 4, expected "
                 "a product below 2^60");
  expect_invalid(build({0, INT32_MAX, 16, 16}, INT32_MAX, INT32_MAX),
                 "batch * heads * q_blocks * kv_blocks: 2147483647 * 2147483647 * 0 * 134217728, "
                 "expected a product below 2^60");
}

TEST(Builders, EveryBuilderChecksItsShape) {
  const BlockShape bad{64, 64, 16, 17};
  const auto yes = [](std::int64_t, std::int64_t, std::int64_t, std::int64_t) { return true; };
  const std::vector<std::int64_t> offsets(5, 0);
  for (const Status& status :
       {BlockMask::from_blocks(bad, 1, 1, {}).status(),
        BlockMask::from_elements(bad, 1, 1, {}).status(),
        BlockMask::from_predicate(bad, 1, 1, yes).status(),
        BlockMask::from_csr(bad, 1, 1, offsets, {}).status(), BlockMask::causal(bad).status(),
        BlockMask::butterfly(bad).status(), BlockMask::local_global(bad, 1, 1).status(),
        BlockMask::strided(bad, 1, 1).status(), BlockMask::random(bad, 1, 1, 1, 0).status()}) {
    expect_invalid(status, "shape.block_kv: 17, expected a positive multiple of 16 below 2^31");
  }
}

TEST(Builders, BadData) {
  const BlockShape s{33, 20, 16, 16};
  const Dense data(7, 1);
  expect_invalid(BlockMask::from_blocks(s, 1, 2, data).status(),
                 "blocks: 7 elements, expected batch * heads * q_blocks * kv_blocks = "
                 "1 * 2 * 3 * 2 = 12");
  expect_invalid(BlockMask::from_elements(s, 2, 1, data).status(),
                 "elements: 7 elements, expected batch * heads * seq_q * seq_kv = "
                 "2 * 1 * 33 * 20 = 1320");
  expect_invalid(
      BlockMask::from_elements({INT32_MAX, INT32_MAX, 1 << 20, 1 << 20}, 1 << 10, 1, data).status(),
      "batch * heads * seq_q * seq_kv: 1024 * 1 * 2147483647 * 2147483647, expected a product "
      "below 2^63");
  expect_invalid(BlockMask::from_predicate(s, 1, 1, nullptr).status(),
                 "attend: empty, expected a callable (b, h, i, j)");
}

/// A legal CSR mask of 3 x 2 blocks of 16 x 48 over 33 x 60 elements, to be spoilt.
struct Csr {
  BlockShape shape{33, 60, 16, 48};
  std::vector<std::int64_t> row_offsets{0, 1, 1, 3};
  std::vector<std::int32_t> columns{0, 0, 1};
  std::vector<std::int32_t> bits_index{1, -1, 0};
  std::vector<std::uint32_t> bits = std::vector<std::uint32_t>(2 * 16 * 2, 0);

  Csr() { bits[0] = 0xfff; }  // tile 0: all of the one row and 12 keys in the corner
  Status build() const {
    return BlockMask::from_csr(shape, 1, 1, row_offsets, columns, bits_index, bits).status();
  }
};

TEST(FromCsr, LegalAndShared) {
  Csr csr;
  EXPECT_TRUE(csr.build().ok()) << csr.build().message();
  csr.bits_index = {0, 0, 0};
  EXPECT_TRUE(csr.build().ok()) << csr.build().message();
  const BlockMask full = made(BlockMask::from_csr(csr.shape, 1, 1, csr.row_offsets, csr.columns));
  Dense dense(33 * 60, 0);
  for (std::int64_t i = 0; i < 33; ++i) {
    for (std::int64_t j = 0; j < 60; ++j) dense[i * 60 + j] = (i < 16 && j < 48) || i >= 32;
  }
  expect_mask(full, dense);
}

TEST(FromCsr, BadArrays) {
  const auto expect = [](auto spoil, const std::string& message) {
    Csr csr;
    spoil(csr);
    expect_invalid(csr.build(), message);
  };
  expect([](Csr& c) { c.row_offsets.pop_back(); },
         "row_offsets: 3 elements, expected batch * heads * q_blocks + 1 = 4");
  expect([](Csr& c) { c.row_offsets.clear(); },
         "row_offsets: 0 elements, expected batch * heads * q_blocks + 1 = 4");
  expect([](Csr& c) { c.row_offsets[0] = 1; }, "row_offsets[0]: 1, expected 0");
  expect([](Csr& c) { c.row_offsets[2] = 0; },
         "row_offsets[2]: 0, expected at least the one before it, 1");
  expect([](Csr& c) { c.row_offsets[1] = INT64_MIN; },
         "row_offsets[1]: -9223372036854775808, expected at least the one before it, 0");
  expect([](Csr& c) { c.row_offsets[3] = 4; },
         "row_offsets[3]: 4, expected the number of entries, 3");
  expect([](Csr& c) { c.row_offsets[3] = 2; },
         "row_offsets[3]: 2, expected the number of entries, 3");
  expect([](Csr& c) { c.columns[0] = -1; },
         "columns[0]: -1, expected above -1 and below kv_blocks = 2");
  expect([](Csr& c) { c.columns[0] = 2; },
         "columns[0]: 2, expected above -1 and below kv_blocks = 2");
  expect([](Csr& c) { c.columns[2] = 0; },
         "columns[2]: 0, expected above 0 and below kv_blocks = 2");
  expect([](Csr& c) { std::swap(c.columns[1], c.columns[2]); },
         "columns[2]: 0, expected above 1 and below kv_blocks = 2");
  expect([](Csr& c) { c.bits_index[0] = 2; },
         "bits_index[0]: 2, expected -1 or below the number of tiles, 2");
  expect([](Csr& c) { c.bits_index[0] = -2; },
         "bits_index[0]: -2, expected -1 or below the number of tiles, 2");
  expect([](Csr& c) { c.bits_index.pop_back(); },
         "bits_index: 2 elements, expected none or one per column, 3");
  expect([](Csr& c) { c.bits.pop_back(); },
         "bits: 63 words, expected a multiple of block_q * words_per_row = 32, below 2^31 times");
  expect([](Csr& c) { c.bits_index.clear(); },
         "bits: 64 words, expected none, as bits_index is empty");
}

TEST(FromCsr, BitsBeyondTheSequence) {
  const auto expect = [](auto spoil, const std::string& message) {
    Csr csr;
    spoil(csr);
    expect_invalid(csr.build(), message);
  };
  expect([](Csr& c) { c.bits[0] |= 1u << 12; },
         "bits[0]: 0x00001fff, expected no bit beyond entry 2's 1 x 12 elements");
  expect([](Csr& c) { c.bits[1] = 1; },
         "bits[1]: 0x00000001, expected no bit beyond entry 2's 1 x 12 elements");
  expect([](Csr& c) { c.bits[2] = 2; },
         "bits[2]: 0x00000002, expected no bit beyond entry 2's 1 x 12 elements");
  expect([](Csr& c) { c.bits[63] = 1u << 16; },
         "bits[63]: 0x00010000, expected no bit beyond entry 0's 16 x 48 elements");
  // Whole words of keys, but fewer rows than a block.
  expect(
      [](Csr& c) {
        c.shape = {33, 64, 16, 32};
        c.bits = std::vector<std::uint32_t>(2 * 16, 0);
        c.bits[1] = 1;
      },
      "bits[1]: 0x00000001, expected no bit beyond entry 2's 1 x 32 elements");
  Csr csr;
  csr.bits[63] = 0xffff;
  EXPECT_TRUE(csr.build().ok()) << csr.build().message();
}

}  // namespace
}  // namespace tessera::test
