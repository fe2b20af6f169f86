// What follows from a ForwardConfig.
#pragma once

#include "cuda/algo/element.cuh"
#include "cuda/sm90/forward_variants.hpp"
#include "cuda/sm90/pipeline.cuh"

namespace tessera::cuda::sm90 {

template <ForwardConfig C>
struct KernelTraits<C> {
  using T = typename ElementOf<C.dtype>::Type;
  static constexpr int kConsumers = C.warpgroups();
  static constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
  static constexpr int kScoreTiles = C.tile_n / 8;
  static constexpr int kOutTiles = C.head_dim_v / 8;
  static constexpr int kKStages = C.k_stages;
  static constexpr int kVStages = C.v_stages;
  static constexpr int kScaleBytes = 0;
  static constexpr bool kPacked = C.packed;
  static constexpr bool kShares = false;
  static constexpr bool kHoldsQ = C.stages_output();
  static constexpr bool kTestsSums = C.tests_sums();
  /// Registers of a thread. A block starts with as many for all as 65536 allow, in steps of 8.
  static constexpr int kProducerRegisters = kConsumers <= 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 4 ? 112 : kConsumers == 3 ? 160 : 232;
  static_assert(C.tile_m == kConsumers * kGroupRows && C.tile_n % 16 == 0);
  static_assert(kConsumers >= 1 && kConsumers <= 4);

  using QTile = SharedTile<T, kGroupRows, C.head_dim>;  ///< One for each consumer.
  using KTile = SharedTile<T, C.tile_n, C.head_dim>;
  using VTile = SharedTile<T, C.tile_n, C.head_dim_v>;
};

}  // namespace tessera::cuda::sm90
