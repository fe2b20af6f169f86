// Which works are shared out along their keys.
#include "cuda/sm90/last_round.hpp"

#include <gtest/gtest.h>

namespace tessera::cuda::sm90 {
namespace {

TEST(LastRound, FillsBlocksThatWouldBeIdle) {
  const LastRound half = last_round(1376, 132, 128);  // 10 rounds and 56 works
  EXPECT_EQ(half.whole, 1320);
  EXPECT_EQ(half.parts, 2);
  EXPECT_EQ(half.shares(1376), 112);
  const LastRound few = last_round(16, 132, 64);  // fewer works than blocks
  EXPECT_EQ(few.whole, 0);
  EXPECT_EQ(few.parts, 8);
}

TEST(LastRound, LeavesWorksWholeWhereNothingIsGained) {
  EXPECT_EQ(last_round(1320, 132, 128).shares(1320), 0);  // full rounds
  EXPECT_EQ(last_round(1440, 132, 128).shares(1440), 0);  // an almost full one
  EXPECT_EQ(last_round(16, 132, 2).shares(16), 0);        // short works
  EXPECT_EQ(last_round(0, 132, 128).shares(0), 0);
  EXPECT_EQ(last_round(16, 0, 128).shares(16), 0);
}

TEST(LastRound, SharesAreTilesAndFitTwoRounds) {
  for (int works = 1; works <= 400; ++works) {
    for (int tiles = 1; tiles <= 40; ++tiles) {
      const LastRound last = last_round(works, 132, tiles);
      ASSERT_LE(last.shares(works), 2 * 132);
      if (last.shares(works) == 0) continue;
      ASSERT_EQ(last.whole % 132, 0);
      ASSERT_GT(last.parts, 1);
      ASSERT_LE(last.parts, tiles);
    }
  }
}

}  // namespace
}  // namespace tessera::cuda::sm90
