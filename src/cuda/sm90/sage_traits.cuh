// What follows from a SageConfig.
#pragma once

#include "cuda/quant/padded.cuh"
#include "cuda/sm90/pipeline.cuh"
#include "cuda/sm90/sage.hpp"

namespace tessera::cuda::sm90 {

/// Two 8-bit elements. Tiles of bytes are tiles of pairs to the copy engine and to wgmma.
using Pair = std::uint16_t;

template <SageConfig C>
struct KernelTraits<C> {
  static constexpr int kConsumers = C.warpgroups();
  static constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
  static constexpr int kScoreTiles = C.tile_n / 8;
  static constexpr int kOutTiles = C.head_dim_v / 8;
  static constexpr int kKeyGroups = C.tile_n / kKeyGroup;
  static constexpr bool kHoldsQ = false;
  static constexpr int kChannels = C.ring_bytes();  ///< Where V's scales lie.
  static constexpr bool kExtras = C.extras();
  static constexpr int kOffsetBytes = C.offset_bytes();
  static constexpr int kKStages = C.stages;
  static constexpr int kVStages = C.stages;
  static constexpr bool kPacked = false;
  static constexpr int kScaleBytes = C.scale_bytes() + kOffsetBytes;  ///< The offsets come last.
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 40;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 232;
  static_assert(C.q_stages == 2 && C.tile_m == kConsumers * kGroupRows &&
                C.tile_n % kKeyGroup == 0);
  static_assert(kConsumers == 2 || kConsumers == 3);

  using QTile = SharedTile<Pair, kGroupRows, C.head_dim / 2>;  ///< One for each consumer.
  using KTile = SharedTile<Pair, C.tile_n, C.head_dim / 2>;
  /// Channels by keys; the last 8 rows are ones.
  using VTile = SharedTile<Pair, C.head_dim_v + 8, C.tile_n / 2>;
};

}  // namespace tessera::cuda::sm90
