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
  static constexpr int kChannels = C.ring_bytes();                    ///< Where V's scales lie,
  static constexpr int kQueryScales = kChannels + C.channel_bytes();  ///< queries',
  static constexpr int kAhead = kQueryScales + C.query_bytes();       ///< and NextWorks.
  static constexpr bool kExtras = C.extras();
  static constexpr bool kConverts = C.converts_queries();
  static constexpr int kOffsetBytes = C.offset_bytes();
  static constexpr int kKStages = C.stages;
  static constexpr int kVStages = C.stages;
  static constexpr bool kPacked = false;
  static constexpr bool kShares = C.shares;
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

/// Address of the 16 scales of a consumer's part of a tile of queries: of each 32 those of i % 8.
template <SageConfig C>
__device__ __forceinline__ std::uint32_t query_scales(const SharedMemory<C>& shared, int stage,
                                                      int group) {
  return shared.q(0, 0).base + KernelTraits<C>::kQueryScales +
         (stage * KernelTraits<C>::kConsumers + group) * 64;
}

}  // namespace tessera::cuda::sm90
