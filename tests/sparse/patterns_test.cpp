// Causal, butterfly, local + global, strided and random masks against their definitions, element by
// element or block by block.
#include <bit>
#include <cmath>
#include <numeric>

#include "sparse/expand.hpp"

namespace tessera::test {
namespace {

constexpr std::int64_t kHuge = INT64_MAX;

std::int64_t block_at(std::int64_t position, std::int64_t block) {
  return position >= 0 ? position / block : -((-position + block - 1) / block);
}

/// A dense mask from listed(r, c).
template <typename Listed>
Dense from_blocks(const BlockShape& s, Listed listed) {
  Dense blocks(s.q_blocks() * s.kv_blocks());
  for (std::int64_t r = 0; r < s.q_blocks(); ++r) {
    for (std::int64_t c = 0; c < s.kv_blocks(); ++c) {
      blocks[r * s.kv_blocks() + c] = listed(r, c);
    }
  }
  Dense dense(s.seq_q * s.seq_kv);
  for (std::int64_t i = 0; i < s.seq_q; ++i) {
    for (std::int64_t j = 0; j < s.seq_kv; ++j) {
      dense[i * s.seq_kv + j] = blocks[i / s.block_q * s.kv_blocks() + j / s.block_kv];
    }
  }
  return dense;
}

/// Whether any query of block r stands in a key block p with near(p).
template <typename Near>
bool any_diagonal(const BlockShape& s, std::int64_t r, Near near) {
  for (std::int64_t i = r * s.block_q; i < (r + 1) * s.block_q && i < s.seq_q; ++i) {
    if (near(block_at(i + s.seq_kv - s.seq_q, s.block_kv))) return true;
  }
  return false;
}

std::string picture(const BlockMask& mask) {
  const BlockMaskView m = mask.view();
  std::string rows;
  for (std::int64_t r = 0; r < m.q_blocks; ++r) {
    for (std::int64_t c = 0; c < m.kv_blocks; ++c) {
      const std::int64_t e = entry_of(m, 0, r, c);
      rows += e < 0 ? '.' : m.bits_index[e] < 0 ? '#' : '+';
    }
    rows += '\n';
  }
  return rows;
}

class Patterns : public testing::TestWithParam<BlockShape> {};

TEST_P(Patterns, Causal) {
  const BlockShape s = GetParam();
  for (const Alignment alignment : {Alignment::bottom_right, Alignment::top_left}) {
    const std::int64_t shift = alignment == Alignment::bottom_right ? s.seq_kv - s.seq_q : 0;
    Dense dense(s.seq_q * s.seq_kv);
    for (std::int64_t i = 0; i < s.seq_q; ++i) {
      for (std::int64_t j = 0; j < s.seq_kv; ++j) dense[i * s.seq_kv + j] = j <= i + shift;
    }
    expect_mask(made(BlockMask::causal(s, alignment)), dense);
  }
}

TEST_P(Patterns, Butterfly) {
  const BlockShape s = GetParam();
  const std::int64_t grid = std::max(s.q_blocks(), s.kv_blocks());
  const auto in_share = [&](std::int64_t x, std::int64_t block, std::int64_t blocks) {
    return block * grid / blocks <= x && x < (block + 1) * grid / blocks;
  };
  const Dense dense = from_blocks(s, [&](std::int64_t r, std::int64_t c) {
    for (std::int64_t x = 0; x < grid; ++x) {
      for (std::int64_t y = 0; y < grid; ++y) {
        if (in_share(x, r, s.q_blocks()) && in_share(y, c, s.kv_blocks()) &&
            std::popcount(static_cast<std::uint64_t>(x ^ y)) <= 1) {
          return true;
        }
      }
    }
    return false;
  });
  expect_mask(made(BlockMask::butterfly(s)), dense);
}

TEST_P(Patterns, LocalGlobal) {
  const BlockShape s = GetParam();
  for (const auto& argument : {std::pair<std::int64_t, std::int64_t>{0, 0},
                               {1, 0},
                               {0, 2},
                               {2, 1},
                               {kHuge, 0},
                               {0, kHuge}}) {
    const std::int64_t local = argument.first;
    const std::int64_t global = argument.second;
    const Dense dense = from_blocks(s, [&](std::int64_t r, std::int64_t c) {
      return r < global || c < global ||
             any_diagonal(s, r, [&](std::int64_t p) { return std::abs(p - c) <= local; });
    });
    SCOPED_TRACE(testing::Message() << "local " << local << " global " << global);
    expect_mask(made(BlockMask::local_global(s, local, global)), dense);
  }
}

TEST_P(Patterns, Strided) {
  const BlockShape s = GetParam();
  for (const auto& argument :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {1, 3}, {2, 4}, {1, kHuge}, {kHuge, 5}}) {
    const std::int64_t local = argument.first;
    const std::int64_t stride = argument.second;
    const Dense dense = from_blocks(s, [&](std::int64_t r, std::int64_t c) {
      std::int64_t last = -1;
      any_diagonal(s, r, [&](std::int64_t p) { return last = std::max(last, p), false; });
      if (c > last) return false;
      return (last - c) % stride == 0 ||
             any_diagonal(s, r, [&](std::int64_t p) { return p - c < local; });
    });
    SCOPED_TRACE(testing::Message() << "local " << local << " stride " << stride);
    expect_mask(made(BlockMask::strided(s, local, stride)), dense);
  }
}

TEST_P(Patterns, Random) {
  const BlockShape s = GetParam();
  for (const double density : {1e-9, 0.1, 0.37, 0.5, 1.0}) {
    const BlockMask mask = made(BlockMask::random(s, 2, 3, density, 7));
    const BlockMaskView m = mask.view();
    const Status status = validate(m);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(m.batch, 2);
    EXPECT_EQ(m.heads, 3);
    EXPECT_EQ(m.partial_blocks, 0);
    const std::int64_t visits =
        std::min(s.kv_blocks(), std::max<std::int64_t>(1, std::llround(density * s.kv_blocks())));
    for (std::int64_t row = 0; row < 6 * s.q_blocks(); ++row) {
      EXPECT_EQ(m.row_offsets[row + 1] - m.row_offsets[row], visits);
    }
    EXPECT_TRUE(expand(m) == expand_transposed(m));
  }
}

INSTANTIATE_TEST_SUITE_P(RaggedShapes, Patterns, testing::ValuesIn(ragged_shapes()));

TEST(Causal, Picture) {
  EXPECT_EQ(picture(made(BlockMask::causal({64, 64, 16, 16}))), "+...\n#+..\n##+.\n###+\n");
  EXPECT_EQ(picture(made(BlockMask::causal({32, 64, 16, 16}))), "##+.\n###+\n");
  EXPECT_EQ(picture(made(BlockMask::causal({32, 64, 16, 16}, Alignment::top_left))),
            "+...\n#+..\n");
  EXPECT_EQ(picture(made(BlockMask::causal({64, 32, 16, 16}))), "..\n..\n+.\n#+\n");
}

TEST(Causal, LastBlockOfOneKeyIsFull) {
  // 17 keys: the last block's only key is the last query's own.
  EXPECT_EQ(picture(made(BlockMask::causal({17, 17, 16, 16}))), "+.\n##\n");
}

TEST(Causal, LongSequencesTakeWorkPerBlockAndShareTiles) {
  const BlockMask mask = made(BlockMask::causal({200000, 200000, 128, 128}));
  const BlockMaskView m = mask.view();
  const std::int64_t n = 1563;
  EXPECT_EQ(m.entries, n * (n + 1) / 2);
  EXPECT_EQ(m.partial_blocks, 2);  // the diagonal's, and the one at the ragged end
  EXPECT_TRUE(validate(m).ok());
}

TEST(Butterfly, Picture) {
  EXPECT_EQ(picture(made(BlockMask::butterfly({96, 96, 16, 16}))),
            "###.#.\n##.#.#\n#.##..\n.###..\n#...##\n.#..##\n");
}

TEST(Butterfly, RatioOfTwoStretchesTheSquarePattern) {
  const Dense coarse = expand(made(BlockMask::butterfly({512, 512, 64, 64})).view());
  EXPECT_TRUE(expand(made(BlockMask::butterfly({512, 512, 64, 32})).view()) == coarse);
  EXPECT_TRUE(expand(made(BlockMask::butterfly({512, 512, 16, 64})).view()) == coarse);
}

TEST(Butterfly, ExchangingTheAxesTransposes) {
  const Dense wide = expand(made(BlockMask::butterfly({5 * 16, 13 * 16, 16, 16})).view());
  const Dense tall = expand(made(BlockMask::butterfly({13 * 16, 5 * 16, 16, 16})).view());
  for (std::int64_t i = 0; i < 80; ++i) {
    for (std::int64_t j = 0; j < 208; ++j) ASSERT_EQ(wide[i * 208 + j], tall[j * 80 + i]);
  }
}

TEST(Butterfly, OneQueryBlockOverManyKeyBlocks) {
  const BlockMask mask = made(BlockMask::butterfly({1, 1 << 20, 16, 16}));
  EXPECT_EQ(mask.view().entries, 1 << 16);
}

TEST(LocalGlobal, Picture) {
  EXPECT_EQ(picture(made(BlockMask::local_global({96, 96, 16, 16}, 1, 1))),
            "######\n###...\n####..\n#.###.\n#..###\n#...##\n");
}

TEST(LocalGlobal, DecodingStandsAtTheLastKey) {
  EXPECT_EQ(picture(made(BlockMask::local_global({33, 97, 32, 16}, 0, 0))), "....##.\n......#\n");
}

TEST(Strided, Picture) {
  EXPECT_EQ(picture(made(BlockMask::strided({96, 96, 16, 16}, 2, 3))),
            "#.....\n##....\n.##...\n#.##..\n.#.##.\n..#.##\n");
}

std::vector<std::int32_t> columns_of(const BlockMask& mask) {
  const BlockMaskView m = mask.view();
  return {m.columns, m.columns + m.entries};
}

TEST(Random, KnownAnswer) {
  // Philox4x32-10, Lemire's scaling and Floyd's sampling written down again in Python.
  const BlockMask mask =
      made(BlockMask::random({4 * 16, 1000 * 16, 16, 16}, 2, 3, 0.01, 0x123456789abcdef0));
  const std::int64_t row = (1 * 3 + 2) * 4 + 3;
  const std::int32_t* columns = mask.view().columns + mask.view().row_offsets[row];
  EXPECT_EQ(std::vector<std::int32_t>(columns, columns + 10),
            (std::vector<std::int32_t>{13, 249, 309, 337, 348, 373, 502, 520, 733, 834}));
}

TEST(Random, KnownSumWithWordsDrawnAgain) {
  // 2^32 mod 10^6 words are drawn again: without that, the sum would be another.
  const BlockMask mask = made(BlockMask::random({5000 * 16, 1000000 * 16, 16, 16}, 1, 1, 1e-9, 9));
  const BlockMaskView m = mask.view();
  EXPECT_EQ(std::accumulate(m.columns, m.columns + m.entries, std::int64_t{0}), 2493709150);
}

TEST(Random, SeedDecides) {
  const BlockShape s{512, 2048, 32, 16};
  const auto columns = columns_of(made(BlockMask::random(s, 2, 2, 0.2, 1)));
  EXPECT_EQ(columns_of(made(BlockMask::random(s, 2, 2, 0.2, 1))), columns);
  EXPECT_NE(columns_of(made(BlockMask::random(s, 2, 2, 0.2, 2))), columns);
  EXPECT_NE(columns_of(made(BlockMask::random(s, 2, 2, 0.2, 1 + (std::uint64_t{1} << 32)))),
            columns);
}

TEST(Random, HeadsDifferAndDoNotDependOnTheirNumber) {
  const BlockShape s{256, 1024, 16, 16};
  const BlockMask one = made(BlockMask::random(s, 1, 1, 0.25, 3));
  const BlockMask many = made(BlockMask::random(s, 2, 2, 0.25, 3));
  const auto plane = [&](const BlockMask& mask, std::int64_t p) {
    const BlockMaskView m = mask.view();
    return std::vector<std::int32_t>(m.columns + m.row_offsets[p * m.q_blocks],
                                     m.columns + m.row_offsets[(p + 1) * m.q_blocks]);
  };
  EXPECT_EQ(plane(one, 0), plane(many, 0));
  for (std::int64_t p = 1; p < 4; ++p) EXPECT_NE(plane(many, 0), plane(many, p));
}

TEST(Random, EveryColumnIsEquallyLikely) {
  const std::int64_t rows = 20000;
  const BlockMask mask = made(BlockMask::random({rows * 16, 7 * 16, 16, 16}, 1, 1, 3.0 / 7, 11));
  std::vector<std::int64_t> drawn(7, 0);
  for (const std::int32_t c : columns_of(mask)) ++drawn[c];
  const double expected = rows * 3.0 / 7;
  // Six standard deviations of a binomial count.
  const double slack = 6 * std::sqrt(rows * 3.0 / 7 * 4.0 / 7);
  for (const std::int64_t count : drawn) EXPECT_NEAR(count, expected, slack);
}

TEST(Random, DensityIsMet) {
  for (const double density : {0.05, 0.25, 0.75, 1.0}) {
    const BlockMask mask = made(BlockMask::random({1600, 1600, 16, 16}, 1, 4, density, 5));
    EXPECT_DOUBLE_EQ(mask.view().density(), density);
  }
}

TEST(Patterns, BadArguments) {
  const BlockShape s{64, 64, 16, 16};
  expect_invalid(BlockMask::causal(s, static_cast<Alignment>(2)).status(),
                 "alignment: 2, expected bottom_right (0) or top_left (1)");
  expect_invalid(BlockMask::local_global(s, -1, 0).status(), "local: -1, expected at least 0");
  expect_invalid(BlockMask::local_global(s, 0, -3).status(), "global: -3, expected at least 0");
  expect_invalid(BlockMask::strided(s, 0, 1).status(), "local: 0, expected at least 1");
  expect_invalid(BlockMask::strided(s, 1, 0).status(), "stride: 0, expected at least 1");
  expect_invalid(BlockMask::random(s, 1, 1, 0, 0).status(),
                 "density: 0, expected above 0 and at most 1");
  expect_invalid(BlockMask::random(s, 1, 1, 1.5, 0).status(),
                 "density: 1.5, expected above 0 and at most 1");
  expect_invalid(BlockMask::random(s, 1, 1, std::nan(""), 0).status(),
                 "density: nan, expected above 0 and at most 1");
  expect_invalid(BlockMask::random(s, 0, 1, 1, 0).status(),
                 "batch: 0, expected at least 1 and below 2^31");
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

TEST(Patterns, MasksBeyondMemoryAreAStatus) {
  if (kSanitized) GTEST_SKIP() << "sanitizers end the process on allocations beyond memory";
  const BlockShape s{INT32_MAX, INT32_MAX, 64, 64};
  for (const Status& status :
       {BlockMask::causal(s).status(), BlockMask::strided(s, 1, 1).status(),
        BlockMask::local_global(s, kHuge, 0).status(), BlockMask::random(s, 9, 9, 1, 0).status()}) {
    EXPECT_EQ(status.code(), StatusCode::out_of_memory);
    EXPECT_NE(status.message().find("33554432 x 33554432 blocks does not fit in memory"),
              std::string::npos)
        << status.message();
  }
}

}  // namespace
}  // namespace tessera::test
