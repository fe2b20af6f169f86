// Queries that a block of the quantised kernel converts itself: warps of the producer's group that
// would have nothing to do turn rows into integers, one warp for each consumer, a work ahead of it.
// So Q goes from memory to shared memory once, and beside products.
#pragma once

#include "cuda/ptx/prefetch.cuh"
#include "cuda/ptx/shared_float.cuh"
#include "cuda/quant/kernels.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/sage_traits.cuh"

namespace tessera::cuda::sm90 {

/// Numbers of works, from the producer to the warps that convert: it finds out in the order in
/// which it loads, they need to know before.
template <SageConfig C>
class NextWorks {
  static constexpr int kSlots = 2;

 public:
  __device__ explicit NextWorks(const SharedMemory<C>& shared)
      : base_(shared.q(0, 0).base + KernelTraits<C>::kAhead) {}

  /// One thread calls it, before all others are let on.
  __device__ void initialise() const {
    for (int slot = 0; slot < kSlots; ++slot) {
      ptx::mbarrier_init(full(slot), 1);
      ptx::mbarrier_init(empty(slot), KernelTraits<C>::kConsumers * ptx::kWarpArrivals);
    }
    ptx::mbarrier_init_fence();
  }

  /// Whole warps call these.
  __device__ __forceinline__ void write(int x) {
    ptx::mbarrier_wait(empty(ring_.stage), ring_.parity ^ 1);
    if (threadIdx.x % kWarpSize == 0) {
      ptx::store_shared_4(number(ring_.stage), static_cast<std::uint32_t>(x));
      ptx::mbarrier_arrive(full(ring_.stage));
    }
    __syncwarp();
    ring_.advance();
  }
  __device__ __forceinline__ int read() {
    ptx::mbarrier_wait(full(ring_.stage), ring_.parity);
    const int x = __float_as_int(ptx::load_shared_float(number(ring_.stage)));
    ptx::mbarrier_arrive_warp(empty(ring_.stage));
    ring_.advance();
    return uniform(x);
  }

 private:
  __device__ __forceinline__ std::uint32_t full(int slot) const {
    return base_ + slot * ptx::kMbarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t empty(int slot) const { return full(kSlots + slot); }
  __device__ __forceinline__ std::uint32_t number(int slot) const {
    return full(2 * kSlots) + slot * 4;
  }

  std::uint32_t base_;
  Ring<kSlots> ring_;
};

/// The warp that converts queries for consumer `group`, with the few registers of the producer: a
/// lane has four channels of the four rows that share a scale, kAtOnce such groups at a time.
template <SageConfig C>
class QueryConverter {
  static constexpr bool kSmooth = C.scope == SageConfig::smooth_q;
  static constexpr int kRowLanes = C.head_dim / 4;       // of a row
  static constexpr int kAtOnce = kWarpSize / kRowLanes;  // groups
  static constexpr int kSteps = kGroupRows / 4 / kAtOnce;
  static_assert(kRowLanes <= kWarpSize && kWarpSize % kRowLanes == 0);
  template <typename T>
  static constexpr int kUnroll = sizeof(T) == 2 ? 2 : 1;
  using Tile = typename KernelTraits<C>::QTile;

 public:
  __device__ QueryConverter(const Parameters& p, const Schedule& schedule,
                            const SageOperands& operands, const SharedMemory<C>& shared, int group)
      : p_(p), schedule_(schedule), operands_(operands), shared_(shared), group_(group) {}

  /// Those of the works that the producer loads keys for.
  __device__ void run() {
    NextWorks<C> next(shared_);
    for (int x = static_cast<int>(blockIdx.x); x < schedule_.works; x = next.read()) {
      int number = x;
      if constexpr (C.shares) number = work_of_share(schedule_.last, x);
      const TileIndex tile = locate_work<C>(p_, schedule_, number);
      if (tile.b < 0) continue;
      const TileWork of = tile_work<C>(p_, tile);
      BlockWalk<Side::queries, C.tile_n> walk(p_, of.work.tile.b, of.work.tile.h, of.rows, of.keys);
      Visit first;
      if (!walk.next(first)) continue;
      if (operands_.out == DType::f16) {
        convert<__half>(of.work);
      } else if (operands_.out == DType::bf16) {
        convert<__nv_bfloat16>(of.work);
      } else {
        convert<float>(of.work);
      }
    }
  }

 private:
  /// Four channels of a row as they lie in memory.
  template <typename T>
  struct Four {
    static constexpr int kWords = static_cast<int>(sizeof(T));
    std::uint32_t words[kWords];

    __device__ __forceinline__ void load(const T* from, bool exist) {
      using Vector = std::conditional_t<kWords == 4, uint4, uint2>;
      Vector x{};
      if (exist) x = __ldg(reinterpret_cast<const Vector*>(from));
      words[0] = x.x, words[1] = x.y;
      if constexpr (kWords == 4) words[2] = x.z, words[3] = x.w;
    }
    __device__ __forceinline__ float at(int e) const {
      return to_float(reinterpret_cast<const T*>(words)[e]);
    }
  };

  template <typename T>
  __device__ __forceinline__ void convert(const Work& work) {
    const int first = work.tile.begin + group_ * kGroupRows;
    const int left = work.sequence.q_len - first;  // rows
    const T* const rows =
        row_of<const T>(p_.q, work.tile.b, work.tile.h, work.sequence.q_begin + first);
    ask_for(rows, left);
    float mean[4] = {};
    if (kSmooth && column() < p_.head_dim) {
      const float4 x = __ldg(reinterpret_cast<const float4*>(
          operands_.q_means + (std::int64_t{work.tile.b} * p_.heads_q + work.tile.h) * p_.head_dim +
          column()));
      mean[0] = x.x, mean[1] = x.y, mean[2] = x.z, mean[3] = x.w;
    }
    const int stage = ring_.stage;
    ptx::mbarrier_wait(shared_.q_empty(stage, group_), ring_.parity ^ 1);
    // Largest magnitudes of all groups first, so that these wait for each other neither at memory
    // nor at the divisions; lane x of a row's has that of its x-th group. Then the rows again,
    // which L1 still has.
    std::uint32_t own = 0;
#pragma unroll kUnroll < T>
    for (int step = 0; step < kSteps; ++step) {
      const int row = row_of_step(step);
      Four<T> x[4];
      load(x, rows, row, left);
      const std::uint32_t largest = reduced(largest_of(x, mean, left - row));
      if (lane() % kRowLanes == step) own = largest;
    }
    const Scale scale = scale_of(magnitude_of<T>(own), operands_.levels);
    if (lane() % kRowLanes < kSteps) {
      const int group = lane() % kRowLanes * kAtOnce + lane() / kRowLanes;
      ptx::store_shared_4(query_scales(shared_, stage, group_) + 4 * group,
                          __float_as_uint(scale.scale));
    }
    const Tile to = shared_.q(stage, group_);
#pragma unroll kUnroll < T>
    for (int step = 0; step < kSteps; ++step) {
      const int row = row_of_step(step);
      Four<T> x[4];
      load(x, rows, row, left);
      const float inverse = __shfl_sync(~0u, scale.inverse, lane() / kRowLanes * kRowLanes + step);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float y[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          y[e] = kSmooth ? __fsub_rn(x[k].at(e), mean[e]) : x[k].at(e);
        }
        ptx::store_shared_4(to.at(row + 8 * k, column() / 16) + column() % 16,
                            quantised(y, 0, row + 8 * k < left ? inverse : 0));
      }
    }
    ptx::proxy_fence();
    ptx::mbarrier_arrive_warp(shared_.q_full(stage, group_));
    ring_.advance();
  }

  /// Rows from memory to L2, all of them before the first is waited for.
  template <typename T>
  __device__ __forceinline__ void ask_for(const T* rows, int left) const {
    constexpr int kLine = 128 / static_cast<int>(sizeof(T));
#pragma unroll 1
    for (int row = lane(); row < min(left, kGroupRows); row += kWarpSize) {
      for (int at = 0; at < p_.head_dim; at += kLine) {
        ptx::prefetch_l2(rows + row * p_.q.stride_s + at);
      }
    }
  }

  /// The first of the rows i, i + 8, i + 16, i + 24 of 32 that share a scale.
  __device__ __forceinline__ static int row_of_step(int step) {
    const int group = step * kAtOnce + lane() / kRowLanes;
    return group / 8 * kQueryWarp + group % 8;
  }

  template <typename T>
  __device__ __forceinline__ void load(Four<T> (&x)[4], const T* rows, int row, int left) const {
    const bool exists = column() < p_.head_dim;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      x[k].load(rows + (row + 8 * k) * p_.q.stride_s + column(), exists && row + 8 * k < left);
    }
  }

  /// What has the order of the largest magnitude: bits of a T, or of a float where means were
  /// subtracted. `left`: so many rows are used.
  template <typename T>
  __device__ __forceinline__ static std::uint32_t largest_of(const Four<T> (&x)[4],
                                                             const float (&mean)[4], int left) {
    std::uint32_t largest = 0;
    if constexpr (kSmooth || sizeof(T) == 4) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const std::uint32_t bits = magnitude_bits(__fsub_rn(x[k].at(e), mean[e]));
          if (8 * k < left) largest = max(largest, bits);
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (const std::uint32_t pair : x[k].words) largest = __vmaxu2(largest, pair & 0x7fff7fffu);
      }
      largest = max(largest & 0xffffu, largest >> 16);
    }
    return largest;
  }
  template <typename T>
  __device__ __forceinline__ static std::uint32_t magnitude_of(std::uint32_t largest) {
    if constexpr (kSmooth || sizeof(T) == 4) return largest;
    const auto bits = static_cast<std::uint16_t>(largest);
    return __float_as_uint(to_float(reinterpret_cast<const T&>(bits)));
  }

  /// Of the lanes that have a row.
  __device__ __forceinline__ static std::uint32_t reduced(std::uint32_t x) {
    if constexpr (kRowLanes == kWarpSize) {
      return __reduce_max_sync(~0u, x);
    } else {
#pragma unroll
      for (int step = 1; step < kRowLanes; step *= 2) {
        x = max(x, __shfl_xor_sync(~0u, x, step));
      }
      return x;
    }
  }

  __device__ static int lane() { return static_cast<int>(threadIdx.x % kWarpSize); }
  __device__ static int column() { return lane() % kRowLanes * 4; }

  const Parameters& p_;
  const Schedule& schedule_;
  const SageOperands& operands_;
  const SharedMemory<C>& shared_;
  const int group_;
  Ring<C.q_stages> ring_;
};

}  // namespace tessera::cuda::sm90
