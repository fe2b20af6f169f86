// How the rows of a head are shared out over a cluster of blocks (clusters.cu).
#pragma once

#include <optional>

namespace tessera::cuda {

struct ClusterShape {
  int blocks;  ///< Of a cluster, a power of two,
  int tiles;   ///< of each of these.
};

/// The smallest cluster that holds `tiles`, of which a block has `most_of_block` at most. None if
/// the device does not place clusters of so many blocks.
inline std::optional<ClusterShape> cluster_shape(int tiles, int most_of_block,
                                                 int largest_cluster) {
  ClusterShape shape{1, 0};
  while (shape.blocks <= largest_cluster && shape.blocks * most_of_block < tiles) {
    shape.blocks *= 2;
  }
  if (shape.blocks > largest_cluster) return std::nullopt;
  shape.tiles = (tiles + shape.blocks - 1) / shape.blocks;
  return shape;
}

}  // namespace tessera::cuda
