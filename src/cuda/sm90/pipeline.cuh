// What the warpgroups of a block share: tiles, barriers and messages in shared memory.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/uniform.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/schedule.hpp"
#include "cuda/tile/group_products.cuh"
#include "cuda/tile/shared_tile.cuh"

namespace tessera::cuda::sm90 {

/// Everything about a config that is known when compiling. ForwardConfig and SageConfig have
/// theirs.
template <auto C>
struct KernelTraits;

/// What the producer says about a key tile, in the same stage.
struct Message {
  static constexpr int kNone = -1;
  enum Flag { more = 1, full = 2, whole = 4 };

  int word = kNone;       ///< First key (a multiple of 16) and flags; kNone: nothing to visit.
  unsigned listed = ~0u;  ///< As in Visit, for tiles that are not whole.

  __device__ bool none() const { return word == kNone; }
  __device__ int begin() const { return word & ~15; }
  __device__ bool has(Flag flag) const { return (word & flag) != 0; }
};

/// A tile of queries that has keys to visit; with Q in shared memory.
struct Work {
  TileIndex tile;
  Sequence sequence;
  int split = 0;  ///< Which part of the keys (packed.cuh), or 1 + the number of a share.
};

/// Named barriers: one of each consumer, one of the producer's, then the consumers' turns.
inline constexpr int kGroupBarrier = 1;
inline constexpr int kProducerBarrier = 5;
inline constexpr int kTurnBarrier = 6;

/// Position in a ring of stages, and the parity of the phases that its barriers go through there.
template <int kStages>
struct Ring {
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Where everything is: tiles first, then scales, barriers and messages.
template <auto C>
class SharedMemory {
  using Traits = KernelTraits<C>;
  static constexpr int kGroups = Traits::kConsumers;
  static constexpr int kQ = C.q_stages * kGroups;
  static constexpr int kKStages = Traits::kKStages;
  static constexpr int kVStages = Traits::kVStages;
  static constexpr int kTileBytes = C.q_stages * kGroups * Traits::QTile::kBytes +
                                    kKStages * Traits::KTile::kBytes +
                                    kVStages * Traits::VTile::kBytes;
  static constexpr int kScaleBytes = Traits::kScaleBytes;  // of a key tile
  static constexpr int kBarriers = 2 * (kQ + kKStages + kVStages);
  static constexpr int kMessages = (kBarriers * ptx::kMbarrierBytes + 15) / 16 * 16;
  static constexpr int kMessageBytes = 8;
  static constexpr int kWorkBytes = 48;
  static constexpr bool kSplits = Traits::kPacked || Traits::kShares;
  static_assert(kTileBytes % 16 == 0 && kScaleBytes % 16 == 0);
  static_assert(kTileBytes + kKStages * (kScaleBytes + kMessageBytes) + kMessages +
                    C.q_stages * kWorkBytes <=
                C.shared_bytes());

 public:
  __device__ explicit SharedMemory(std::uint32_t base) : base_(base) {}

  __device__ __forceinline__ typename Traits::QTile q(int stage, int group) const {
    return {base_ + (stage * kGroups + group) * Traits::QTile::kBytes};
  }
  __device__ __forceinline__ typename Traits::KTile k(int stage) const {
    return {base_ + kQ * Traits::QTile::kBytes + stage * Traits::KTile::kBytes};
  }
  __device__ __forceinline__ typename Traits::VTile v(int stage) const {
    return {k(kKStages).base + stage * Traits::VTile::kBytes};
  }

  /// Of a tile of K, if there are any.
  __device__ __forceinline__ std::uint32_t scales(int stage) const {
    return base_ + kTileBytes + stage * kScaleBytes;
  }

  __device__ __forceinline__ std::uint32_t q_full(int stage, int group) const {
    return barrier(stage * kGroups + group);
  }
  __device__ __forceinline__ std::uint32_t q_empty(int stage, int group) const {
    return barrier(kQ + stage * kGroups + group);
  }
  __device__ __forceinline__ std::uint32_t k_full(int stage) const {
    return barrier(2 * kQ + stage);
  }
  __device__ __forceinline__ std::uint32_t k_empty(int stage) const {
    return barrier(2 * kQ + kKStages + stage);
  }
  __device__ __forceinline__ std::uint32_t v_full(int stage) const {
    return barrier(2 * (kQ + kKStages) + stage);
  }
  __device__ __forceinline__ std::uint32_t v_empty(int stage) const {
    return barrier(2 * (kQ + kKStages) + kVStages + stage);
  }

  __device__ __forceinline__ void write(int stage, const Message& message) const {
    ptx::store_shared_8(message_address(stage), message.word, message.listed);
  }
  /// Whole warps call it.
  __device__ __forceinline__ Message read(int stage) const {
    std::uint32_t words[2];
    ptx::load_shared_8(words, message_address(stage));
    return {uniform(static_cast<int>(words[0])), words[1]};
  }

  __device__ __forceinline__ void write(int q_stage, const Work& work) const {
    const TileIndex& t = work.tile;
    const Sequence& s = work.sequence;
    const std::uint32_t to = work_address(q_stage);
    ptx::store_shared_16(to, t.b, t.h, t.begin, s.shift);
    ptx::store_shared_16(to + 16, s.q_begin, s.q_rows, s.q_len, s.kv_begin);
    ptx::store_shared_8(to + 32, s.kv_rows, s.kv_len);
    if constexpr (kSplits) ptx::store_shared_8(to + 40, work.split, 0);
  }
  /// Whole warps call it.
  __device__ __forceinline__ Work read_work(int q_stage) const {
    std::uint32_t w[2][4], v[2];
    const std::uint32_t from = work_address(q_stage);
    ptx::load_shared_16(w[0], from);
    ptx::load_shared_16(w[1], from + 16);
    ptx::load_shared_8(v, from + 32);
    const auto word = [](std::uint32_t x) { return uniform(static_cast<int>(x)); };
    Work work{{word(w[0][0]), word(w[0][1]), word(w[0][2])},
              {word(w[1][0]), word(w[1][3]), word(w[1][1]), word(v[0]), word(w[1][2]), word(v[1]),
               word(w[0][3])}};
    if constexpr (kSplits) {
      ptx::load_shared_8(v, from + 40);
      work.split = word(v[0]);
    }
    return work;
  }

  /// One thread calls it, before all others are let on. Whoever empties arrives once a warp.
  /// `q_arrivals`: of those who fill a consumer's part of a tile of queries.
  __device__ void initialise(int q_arrivals = 1) const {
    constexpr int kGroupArrivals = kGroupThreads / kWarpSize * ptx::kWarpArrivals;
    for (int q = 0; q < kQ; ++q) {
      ptx::mbarrier_init(q_full(0, q), q_arrivals);
      ptx::mbarrier_init(q_empty(0, q), kGroupArrivals);
    }
    for (int stage = 0; stage < kKStages; ++stage) {
      ptx::mbarrier_init(k_full(stage), 1);
      ptx::mbarrier_init(k_empty(stage), kGroups * kGroupArrivals);
    }
    for (int stage = 0; stage < kVStages; ++stage) {
      ptx::mbarrier_init(v_full(stage), 1);
      ptx::mbarrier_init(v_empty(stage), kGroups * kGroupArrivals);
    }
    ptx::mbarrier_init_fence();
  }

 private:
  __device__ __forceinline__ std::uint32_t barrier(int n) const {
    return scales(kKStages) + n * ptx::kMbarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t message_address(int stage) const {
    return barrier(0) + kMessages + C.q_stages * kWorkBytes + stage * kMessageBytes;
  }
  __device__ __forceinline__ std::uint32_t work_address(int q_stage) const {
    return barrier(0) + kMessages + q_stage * kWorkBytes;
  }

  std::uint32_t base_;
};

/// Starts to fill a tile with rows [row, …) of a head, from element `column` on.
/// One thread calls it.
template <typename Tile>
__device__ __forceinline__ void load_panels(const Tile& tile, std::uint32_t barrier,
                                            const CUtensorMap& map, int column, int row, int h,
                                            int b) {
#pragma unroll
  for (int panel = 0; panel < Tile::kCols / Tile::kPanel; ++panel) {
    ptx::tma_load(tile.base + panel * Tile::kRows * Tile::kPitch, &map, barrier,
                  column + panel * Tile::kPanel, row, h, b);
  }
}

/// Work `x` of the schedule; b = −1: there is none. A first tile may begin in front of its
/// sequence.
template <auto C>
__device__ inline TileIndex locate_work(const Parameters& p, const Schedule& schedule, int x) {
  TileIndex tile;
  if (p.varlen) {
    const int rest = x / p.group;
    tile.h = rest / schedule.tiles * p.group + x % p.group;
    if (!locate_tile<Side::queries>(p, rest % schedule.tiles, C.tile_m, tile)) tile.b = -1;
    return tile;
  }
  const int size = schedule.section * schedule.tiles * p.group;
  const int first = x / size * schedule.section;
  const int heads = min(schedule.section, p.batch * p.heads_kv - first) * p.group;
  const int in_section = x % size;
  const int plane = first + in_section % heads / p.group;
  tile.b = plane / p.heads_kv;
  tile.h = plane % p.heads_kv * p.group + in_section % p.group;
  tile.begin = (schedule.tiles - 1 - in_section / heads) * C.tile_m - schedule.missing;
  return tile;
}

/// Number `x` of a schedule whose last works are shared out.
__device__ __forceinline__ int work_of_share(const LastRound& last, int x) {
  return x < last.whole ? x : last.whole + (x - last.whole) / last.parts;
}

/// Its part of the keys, which all begin at 0 there. There are at least as many tiles as parts.
template <auto C>
__device__ __forceinline__ void take_share(const LastRound& last, int x, Work& work, Range& keys) {
  if (x < last.whole) return;
  const int tiles = (keys.end + C.tile_n - 1) / C.tile_n;
  const int part = (x - last.whole) % last.parts;
  work.split = 1 + x - last.whole;
  keys = {tiles * part / last.parts * C.tile_n,
          min(keys.end, tiles * (part + 1) / last.parts * C.tile_n)};
}

/// The works of one block. With a counter: whichever is next when the block gets to it, the longest
/// first, so that blocks end together. Without: one of every gridDim; there and back, sums of
/// falling lengths are alike. Whole warps call it.
class BlockWorks {
 public:
  __device__ explicit BlockWorks(const Schedule& schedule)
      : works_(schedule.works),
        counter_(schedule.counter),
        back_(schedule.back),
        next_(static_cast<int>(blockIdx.x)) {}

  /// −1 at the end.
  __device__ __forceinline__ int next() {
    const int x = uniform(next_);
    if (x >= works_) return -1;
    if (counter_ == nullptr) {
      // The way back is computed anew, not kept: the loading warp has no uniform register to spare.
      const int blocks = static_cast<int>(gridDim.x);
      next_ += back_ ? 2 * (blocks - x % blocks) - 1 : blocks;
    } else {
      // Fetched one work ahead; the other lanes' 0 does not matter to uniform.
      next_ = threadIdx.x == 0 ? atomicAdd(counter_, 1) + static_cast<int>(gridDim.x) : 0;
    }
    return x;
  }

  /// What comes after it; works or more: nothing.
  __device__ __forceinline__ int after() const { return uniform(next_); }

 private:
  int works_;
  int* counter_;
  bool back_;
  int next_;
};

}  // namespace tessera::cuda::sm90
