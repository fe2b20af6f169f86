// All passes of the default scheme with each row read once: a cluster of blocks has all rows of a
// head of a sequence in its shared memory.
//
// A cluster takes one head of K, of V, or of Q where that is smoothed, each block of it up to
// kTileBytes of neighbouring rows. They come by cp.async; teams of threads reduce them a tile at a
// time (TileTeam); behind the cluster's barrier every block puts together the statistics of all
// blocks, from their shared memory, and converts its rows. As many blocks are resident as shared
// memory allows, so that while some wait for memory others compute. Of Q only means are wanted.
//
// Against the kernel of jobs (fused.cu) half the bytes go through L2, which is what limits that
// one, and nobody waits for anybody outside of the cluster. Longer sequences are left to it.
#include <algorithm>

#include "cuda/host/device.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/launches.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/quant/tile_team.cuh"

namespace tessera::cuda {
namespace {

constexpr int kTileBytes = 64 * 1024;  // of a block: three are resident
constexpr int kLargestCluster = 16;
constexpr int kResident = 3;

template <int kChunks>
inline constexpr int kTeams = 16 / kChunks;
template <int kChunks>
inline constexpr int kBlockThreads = kTeams<kChunks>* kSlots* kChunks;
template <typename T, int kChunks>
inline constexpr int kBytesOfTile = kTileTokens * 8 * kChunks* static_cast<int>(sizeof(T));
template <typename T, int kChunks>
inline constexpr int kMostTiles = kTileBytes / kBytesOfTile<T, kChunks>;

/// Rows of a tile in shared memory. A tile of V is left as words where its rows were.
template <int kPitch>
struct SharedRows {
  template <typename T>
  struct Column {
    const std::byte* first;
    __device__ __forceinline__ const std::byte* row(int i) const { return first + i * kPitch; }
  };
  template <typename T>
  __device__ __forceinline__ Column<T> at(const Source&, const TileRows& rows, int column) const {
    return {reinterpret_cast<const std::byte*>(words) - rows.begin * kPitch +
            column * static_cast<int>(sizeof(T))};
  }
  template <bool kLast, typename Vector>
  __device__ __forceinline__ static Vector read(const Vector* from) {
    return *from;
  }
  template <typename Number>
  __device__ __forceinline__ static Number read_computed(const Number* from) {
    return *from;
  }

  std::uint32_t* words;
};

/// How rows are shared out: first come clusters for heads of Q, then in turns for K's and V's.
struct ClusterOrder : ClusterShape {
  int q_planes;  ///< Heads of Q in all sequences; 0: no means of it are wanted.
};

/// What a block has besides its rows.
template <int kChunks, int kTiles>
struct BlockState {
  Shared<kChunks> teams[kTeams<kChunks>];
  float sums[2 * kTiles][8 * kChunks];  ///< Of its blocks of tokens.
  std::uint32_t largest[8 * kChunks];   ///< Of its rows.
  std::uint32_t all[8 * kChunks];       ///< Means, or largest magnitudes, of all blocks' rows.
};

template <typename T, int kChunks>
class ClusterBlock {
  static constexpr int kColumns = 8 * kChunks;
  static constexpr int kPitch = kColumns * static_cast<int>(sizeof(T));
  static constexpr int kThreads = kBlockThreads<kChunks>;
  using Rows = SharedRows<kPitch>;
  using Team = TileTeam<T, kChunks, kTeams<kChunks>, Rows>;
  static_assert(sizeof(Words<kChunks>) <= kBytesOfTile<T, kChunks>);

 public:
  using State = BlockState<kChunks, kMostTiles<T, kChunks>>;

  /// `rows`: of the whole sequence, whose tiles [first, first + count) are the block's.
  __device__ ClusterBlock(const Parameters& p, const FusedTarget& to, const ClusterOrder& order,
                          State& state, std::byte* tiles, const TileRows& rows, int first,
                          int count)
      : p_(p),
        to_(to),
        order_(order),
        state_(state),
        tiles_(tiles),
        rows_(rows),
        first_(first),
        count_(count) {}

  /// `means`: where the sequence's means go; null: none are subtracted.
  __device__ __forceinline__ void run(Tensor tensor, float* means) {
    const Source& source = source_of(to_, tensor);
    load(source);
    if (tensor == kV) {
      for (int d = static_cast<int>(threadIdx.x); d < kColumns; d += kThreads) {
        state_.largest[d] = 0;
      }
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (tensor == kV) {
      each_tile([&](const Team& team, const TileRows& rows, int) {
        team.reduce_largest(source, rows, state_.largest);
      });
      gather([&] { gather_largest(); });
      each_tile([&](const Team& team, const TileRows& rows, int) {
        team.quantise_values(source, rows, state_.all);
      });
    } else if (tensor == kQ) {
      each_tile([&](const Team& team, const TileRows& rows, int tile) {
        team.template sum<kOfQueries>(source, rows,
                                      sums_of(source, tile * kTileTokens, kOfQueries));
      });
      gather([&] { gather_means(source, kOfQueries, means); });
    } else if (means == nullptr) {
      each_tile([&](const Team& team, const TileRows& rows, int) {
        team.template quantise_rows<false>(kK, source, rows, nullptr);
      });
    } else {
      each_tile([&](const Team& team, const TileRows& rows, int tile) {
        team.template sum<kOfKeys>(source, rows, sums_of(source, tile * kTileTokens, kOfKeys));
      });
      gather([&] { gather_means(source, kOfKeys, means); });
      each_tile([&](const Team& team, const TileRows& rows, int) {
        team.template quantise_rows<true>(kK, source, rows, means_of_all());
      });
    }
    if (tensor == kV || means != nullptr) ptx::cluster_wait();
  }

 private:
  static constexpr int kOfKeys = static_cast<int>(::tessera::quant::kKeyBlock);
  static constexpr int kOfQueries = static_cast<int>(::tessera::quant::kQueryBlock);

  /// Starts to copy the block's rows, as far as they are used.
  __device__ __forceinline__ void load(const Source& source) const {
    constexpr int kVectors = kPitch / 16;
    const int at = static_cast<int>(threadIdx.x) % kVectors * 16;
    const int begin = first_ * kTileTokens;
    const int end = min(rows_.length, begin + count_ * kTileTokens);
    if (at < source.columns * static_cast<int>(sizeof(T))) {
      const T* from = row_of<const T>(source.rows, rows_.b, rows_.h, rows_.first);
      const std::uint32_t to = ptx::shared_address(tiles_) + at;
#pragma unroll 8
      for (int row = begin + static_cast<int>(threadIdx.x) / kVectors; row < end;
           row += kThreads / kVectors) {
        ptx::cp_async_16(to + (row - begin) * kPitch,
                         reinterpret_cast<const std::byte*>(from + row * source.rows.stride_s) + at,
                         16);
      }
    }
    ptx::cp_async_commit();
  }

  /// Calls work(team, rows, number) for the block's tiles, shared out over its teams.
  template <typename Work>
  __device__ __forceinline__ void each_tile(Work work) const {
    const int own = static_cast<int>(threadIdx.x) / Team::kThreads;
#pragma unroll 1
    for (int tile = own; tile < count_; tile += kTeams<kChunks>) {
      TileRows rows = rows_;
      rows.begin = (first_ + tile) * kTileTokens;
      rows.row += rows.begin;
      auto* const words =
          reinterpret_cast<std::uint32_t*>(tiles_ + tile * kBytesOfTile<T, kChunks>);
      work(Team(p_, to_, state_.teams[own], Rows{words}), rows, tile);
      Team::sync();
    }
  }

  /// What all blocks have reduced is put together by `work`; behind it each may go on, and at the
  /// cluster's next barrier end.
  template <typename Work>
  __device__ __forceinline__ void gather(Work work) const {
    ptx::cluster_arrive();
    ptx::cluster_wait();
    work();
    __syncthreads();
    ptx::cluster_arrive();
  }

  __device__ __forceinline__ float* sums_of(const Source& source, int row, int tokens) const {
    return &state_.sums[0][0] + row / tokens * source.columns;
  }
  __device__ __forceinline__ float* means_of_all() const {
    return reinterpret_cast<float*>(state_.all);
  }

  __device__ __forceinline__ void gather_largest() const {
    for (int d = static_cast<int>(threadIdx.x); d < kColumns; d += kThreads) {
      const std::uint32_t own = ptx::shared_address(&state_.largest[d]);
      std::uint32_t most = 0;
#pragma unroll 8
      for (int rank = 0; rank < order_.blocks; ++rank) {
        most = max(most, ptx::load_cluster_4(ptx::cluster_address(own, rank)));
      }
      state_.all[d] = most;
    }
  }

  /// The first team's work.
  __device__ __forceinline__ void gather_means(const Source& source, int tokens,
                                               float* means) const {
    if (threadIdx.x >= Team::kThreads) return;
    const int of_block = order_.tiles * (kTileTokens / tokens);
    const std::uint32_t sums = ptx::shared_address(&state_.sums[0][0]);
    const Team team(p_, to_, state_.teams[0], Rows{reinterpret_cast<std::uint32_t*>(tiles_)});
    team.finish_mean(
        source, rows_,
        [&](int block, int column) {
          const std::uint32_t at = sums + (block % of_block * source.columns + column) * 4;
          return ptx::load_cluster_16(ptx::cluster_address(at, block / of_block));
        },
        means_of_all());
    Team::sync();
    if (first_ > 0) return;
    for (int d = static_cast<int>(threadIdx.x); d < source.columns; d += Team::kThreads) {
      means[d] = means_of_all()[d];
    }
  }

  const Parameters& p_;
  const FusedTarget& to_;
  const ClusterOrder& order_;
  State& state_;
  std::byte* const tiles_;
  const TileRows rows_;
  const int first_, count_;
};

template <typename T, int kChunks>
__global__ void __launch_bounds__(kBlockThreads<kChunks>, kResident)
    quantise_clusters(const __grid_constant__ Parameters p,
                      const __grid_constant__ FusedTarget target,
                      const __grid_constant__ ClusterOrder order) {
  using Block = ClusterBlock<T, kChunks>;
  extern __shared__ __align__(16) std::byte bytes[];
  ptx::release_next_launch();
  for (unsigned x = blockIdx.x * blockDim.x + threadIdx.x; x < kCounterInts;
       x += gridDim.x * blockDim.x) {
    target.counter[x] = 0;
  }
  const int cluster = static_cast<int>(blockIdx.x) / order.blocks;
  const int of_kv = cluster - order.q_planes;
  const Tensor tensor = of_kv < 0 ? kQ : of_kv % 2 == 0 ? kK : kV;
  const Source& source = source_of(target, tensor);
  const int plane = tensor == kQ ? cluster : of_kv / 2;
  const TileRows rows = rows_of_sequence(p, source, plane / source.heads, plane % source.heads);
  const int first = ptx::cluster_rank() * order.tiles;
  const int count = clamp_to(source.padded_rows / kTileTokens - first, 0, order.tiles);
  auto& state =
      *reinterpret_cast<typename Block::State*>(bytes + order.tiles * kBytesOfTile<T, kChunks>);
  float* means = means_of(target, tensor);
  if (means != nullptr) means += rows.sequence_plane * source.columns;
  Block(p, target, order, state, bytes, rows, first, count).run(tensor, means);
}

template <typename T, int kChunks>
std::size_t shared_bytes(int tiles) {
  return tiles * kBytesOfTile<T, kChunks> + sizeof(typename ClusterBlock<T, kChunks>::State);
}

/// Blocks of the largest cluster that the device places: parts of one may be too small for all.
template <typename T, int kChunks>
int largest_placed(int device) {
  static PerDevice<int> largest;
  return largest.get(device, [](int) {
    return largest_cluster(reinterpret_cast<const void*>(quantise_clusters<T, kChunks>),
                           kBlockThreads<kChunks>, shared_bytes<T, kChunks>(kMostTiles<T, kChunks>),
                           kLargestCluster);
  });
}

int columns_of(const FusedTarget& target) { return std::max(target.q.columns, target.v.columns); }

/// Tiles of the longest sequence.
int most_tiles(const FusedTarget& target) {
  const int rows_q = target.q_means != nullptr ? target.q.padded_rows : 0;
  return std::max(rows_q, target.k.padded_rows) / kTileTokens;
}

}  // namespace

std::optional<ClusterShape> clusters_for(const Parameters& p, const FusedTarget& target,
                                         int device) {
  std::optional<ClusterShape> shape;
  if (p.varlen || target.q_values != nullptr || p.batch == 0) return shape;
  const Status asked = for_dtype(target.q.dtype, [&]<typename T>(T) {
    return for_chunks(columns_of(target), [&](auto chunks) -> Status {
      if constexpr (constexpr int kChunks = chunks(); kChunks <= 16) {
        shape = cluster_shape(most_tiles(target), kMostTiles<T, kChunks>,
                              largest_placed<T, kChunks>(device));
      }
      return {};
    });
  });
  return asked.ok() ? shape : std::nullopt;
}

Status quantise_in_clusters(const Parameters& p, const FusedTarget& target,
                            const ClusterShape& shape, cudaStream_t stream) {
  return for_dtype(target.q.dtype, [&]<typename T>(T) {
    return for_chunks(columns_of(target), [&](auto chunks) -> Status {
      if constexpr (constexpr int kChunks = chunks(); kChunks <= 16) {
        const ClusterOrder order{shape, target.q_means != nullptr ? p.batch * p.heads_q : 0};
        const std::int64_t clusters = order.q_planes + std::int64_t{2} * p.batch * p.heads_kv;
        return launch("quantise", quantise_clusters<T, kChunks>,
                      LaunchShape{clusters * shape.blocks, kBlockThreads<kChunks>,
                                  shared_bytes<T, kChunks>(shape.tiles), shape.blocks},
                      stream, p, target, order);
      } else {
        return Status(StatusCode::unsupported, "quantise: rows of more than 128 channels");
      }
    });
  });
}

}  // namespace tessera::cuda
