// What the benchmark counts: operations, bytes, combinations; and how it sums up samples.
#include <gtest/gtest.h>

#include <set>

#include "bench/contender.hpp"
#include "bench/problem.hpp"
#include "bench/statistics.hpp"
#include "bench/sweep.hpp"
#include "bench/tune.hpp"
#include "error.hpp"

namespace tessera::cli::bench {
namespace {

Case square(std::int64_t seq) {
  Case p;
  p.batch = 2;
  p.heads_q = p.heads_kv = 3;
  p.seq_q = p.seq_kv = seq;
  p.head_dim = p.head_dim_v = 64;
  return p;
}

TEST(Flops, CountAsThePapersDo) {
  Case p = square(512);
  const double forward = 4.0 * 512 * 512 * 64 * 3 * 2;
  EXPECT_EQ(flop_count(p, visible_pairs(p)), forward);
  p.causal = true;
  EXPECT_EQ(flop_count(p, visible_pairs(p)), forward / 2);
  p.pass = Pass::backward;
  EXPECT_EQ(flop_count(p, visible_pairs(p)), 2.5 * forward / 2);
}

TEST(Flops, TakeTheMeanOfTwoHeadDims) {
  Case p = square(16);
  p.head_dim = 32;
  p.head_dim_v = 96;
  EXPECT_EQ(flop_count(p, visible_pairs(p)), 4.0 * 16 * 16 * 64 * 3 * 2);
}

TEST(Flops, CausalRectanglesCountWhatIsVisible) {
  Case p = square(4);
  p.causal = true;
  p.batch = p.heads_q = 1;
  p.seq_q = 1;
  EXPECT_EQ(visible_pairs(p), 4);
  p.seq_q = 2;
  EXPECT_EQ(visible_pairs(p), 3 + 4);
  p.seq_q = 6;  // the first two rows see nothing
  EXPECT_EQ(visible_pairs(p), 1 + 2 + 3 + 4);
}

TEST(Flops, WindowsCountWhatIsVisible) {
  Case p = square(5);
  p.batch = p.heads_q = 1;
  p.window = {1, 1};
  EXPECT_EQ(visible_pairs(p), 2 + 3 + 3 + 3 + 2);
  p.causal = true;
  EXPECT_EQ(visible_pairs(p), 1 + 2 + 2 + 2 + 2);
  p.window = {-1, 0};
  EXPECT_EQ(visible_pairs(p), 15);
}

TEST(Flops, BlockMasksCountTheirListedBlocks) {
  Case p = square(100);
  // Blocks of 64 by 32: rows of 64 and 36, columns of 32, 32, 32 and 4.
  const std::vector<std::uint8_t> blocks{1, 0, 0, 1,   //
                                         0, 1, 0, 0};  //
  const auto mask = BlockMask::from_blocks({100, 100, 64, 32}, 1, 1, blocks);
  ASSERT_TRUE(mask.ok());
  EXPECT_EQ(listed_pairs(p, mask.value().view()), 6 * (64 * (32 + 4) + 36 * 32));
}

TEST(Bytes, CountInputsAndOutputsOnce) {
  Case p = square(8);
  p.heads_kv = 1;
  p.head_dim_v = 32;
  p.dtype = DType::bf16;
  const std::int64_t q = 2 * 3 * 8 * 64;
  const std::int64_t k = 2 * 1 * 8 * 64;
  EXPECT_EQ(input_output_bytes(p), 2 * (q + k + q / 2 + k / 2));
  p.pass = Pass::backward;
  EXPECT_EQ(input_output_bytes(p), 2 * 2 * (q + k + q / 2 + k / 2) + 4 * 2 * 3 * 8);
}

TEST(Labels, NameWhatDiffers) {
  Case p = square(8);
  EXPECT_EQ(shape_label(p), "2x3x8x64");
  EXPECT_EQ(mask_label(p, {}), "dense");
  p.heads_kv = 1;
  p.seq_kv = 9;
  p.head_dim_v = 32;
  p.causal = true;
  p.window = {4, -1};
  EXPECT_EQ(shape_label(p), "2x3/1x8/9x64/32");
  EXPECT_EQ(mask_label(p, {}), "causal window 4,-1");
  EXPECT_EQ(mask_label(p, {Pattern::butterfly}), "butterfly");
}

TEST(Patterns, HaveTheirNamesAndDensities) {
  const Case p = square(4096);
  for (Pattern pattern : {Pattern::dense, Pattern::butterfly, Pattern::local_global,
                          Pattern::strided, Pattern::random}) {
    EXPECT_EQ(pattern_named(name_of(pattern)), pattern);
  }
  EXPECT_FALSE(pattern_named("checkerboard"));
  EXPECT_FALSE(build_mask(p, {Pattern::dense}));
  EXPECT_EQ(build_mask(p, {Pattern::butterfly})->view().density(), 6.0 / 32);
  EXPECT_EQ(build_mask(p, {Pattern::random, 0.25})->view().density(), 0.25);
  for (double density : {0.2, 0.5, 0.75}) {
    EXPECT_NEAR(build_mask(p, {Pattern::local_global, density})->view().density(), density, 0.03);
  }
}

TEST(Sweeps, MakeEveryCombinationOnce) {
  Sweep sweep;
  sweep.passes = {Pass::forward, Pass::backward};
  sweep.heads_q = {4, 8};
  sweep.heads_kv = {1, 4};
  sweep.seq_q = {16, 32, 64};
  sweep.causal = {false, true};
  sweep.impls = {"auto", "standard"};
  sweep.threads = {1, 2};
  sweep.masks = {{Pattern::dense}, {Pattern::butterfly}};
  const std::vector<Group> groups = expand(sweep);
  EXPECT_EQ(groups.size(), 2u * 2 * 2 * 3 * 2);
  std::set<std::string> labels;
  for (const Group& group : groups) {
    const Case& p = group.problem;
    labels.insert(name_of(p.pass) + shape_label(p) + mask_label(p, {}));
    EXPECT_EQ(p.seq_q, p.seq_kv);
    EXPECT_EQ(p.head_dim, p.head_dim_v);
    EXPECT_EQ(group.variants.size(), 6u);  // standard has no block mask
  }
  EXPECT_EQ(labels.size(), groups.size());
  sweep.heads_kv = {3};
  EXPECT_THROW(expand(sweep), Error);
}

TEST(Suites, AllMakeGroupsOfTheirName) {
  for (DeviceType device : {DeviceType::cpu, DeviceType::cuda}) {
    for (const Suite& suite : suites()) {
      const std::vector<Group> groups = make_suite(suite.name, {device, {}, {}, 1});
      const std::string name = suite.name;
      const bool missing = device == DeviceType::cpu && (name == "peers" || name == kTuneSuite);
      EXPECT_EQ(groups.empty(), missing) << suite.name;
      for (const Group& group : groups) EXPECT_EQ(group.suite, suite.name);
    }
  }
  for (const Group& group : make_suite("core", {DeviceType::cpu, {3, 3}, {"cpu_portable"}, 2})) {
    ASSERT_EQ(group.variants.size(), 1u);
    EXPECT_EQ(group.variants[0].threads, 3);
    EXPECT_EQ(group.variants[0].impl, "cpu_portable");
  }
}

TEST(Statistics, MedianMinimumMaximum) {
  EXPECT_EQ(median({3}), 3);
  EXPECT_EQ(median({9, 1, 4}), 4);
  EXPECT_EQ(median({9, 1, 4, 2}), 3);
  EXPECT_EQ(minimum({9, 1, 4}), 1);
}

}  // namespace
}  // namespace tessera::cli::bench
