// Which clusters the quantise kernel asks for, and when it leaves rows to the kernel of jobs.
#include "cuda/quant/cluster_shape.hpp"

#include <gtest/gtest.h>

namespace tessera::cuda {
namespace {

TEST(ClusterShape, HoldsAllTiles) {
  for (int most = 1; most <= 4; most *= 2) {
    for (int largest = 1; largest <= 16; largest *= 2) {
      for (int tiles = 0; tiles <= 80; ++tiles) {
        const auto shape = cluster_shape(tiles, most, largest);
        ASSERT_EQ(shape.has_value(), tiles <= most * largest);
        if (!shape) continue;
        EXPECT_LE(shape->blocks, largest);
        EXPECT_LE(shape->tiles, most);
        EXPECT_GE(shape->blocks * shape->tiles, tiles);
        EXPECT_TRUE(shape->blocks == 1 || tiles > shape->blocks / 2 * most);
      }
    }
  }
}

TEST(ClusterShape, LeavesLongSequencesToDevicesThatPlaceThem) {
  EXPECT_EQ(cluster_shape(32, 2, 16)->blocks, 16);
  EXPECT_FALSE(cluster_shape(32, 2, 8));  // a part of a device
  EXPECT_EQ(cluster_shape(16, 2, 8)->blocks, 8);
  EXPECT_FALSE(cluster_shape(1, 2, 0));  // a device that does not answer
}

}  // namespace
}  // namespace tessera::cuda
