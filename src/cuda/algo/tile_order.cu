#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/tile_order.cuh"
#include "cuda/host/launch.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBuckets = 64;       ///< Of tiles by work; the first has those in pieces.
constexpr int kLeastPiece = 1024;  ///< Rows of the inner axis.
constexpr int kLong = 4;           ///< A tile is long from this part of a fair share on.

/// Work in entries of the mask.
using Work = unsigned long long;

template <Side kSide>
class TileWork {
 public:
  __device__ TileWork(const Parameters& p, const Tiles& tiles) : p_(p), tiles_(tiles) {}

  __device__ Work operator()(int number) const {
    TileIndex tile;
    const int place = tile_of_block<kSide>(p_, number, static_cast<int>(tiles_.per_head), tile.h);
    locate_tile<kSide>(p_, place, tiles_.rows, tile);
    const int rows = kSide == Side::queries ? p_.seq_q : p_.seq_kv;
    const Range outer{tile.begin, min(tile.begin + tiles_.rows, rows)};
    if (kSide == Side::queries) return of_head(tile, tile.h, outer);
    if (p_.block_mask.heads == 1) return of_head(tile, 0, outer);
    Work work = 0;
    for (int h = tile.h * p_.group; h < (tile.h + 1) * p_.group; ++h) {
      work += of_head(tile, h, outer);
    }
    return work;
  }

 private:
  __device__ Work of_head(const TileIndex& tile, int h, Range outer) const {
    const MaskLines lines = mask_lines<kSide>(p_, tile.b, h);
    const int first = outer.begin / lines.line_size;
    const int end = min((outer.end - 1) / lines.line_size + 1, lines.lines);
    if (first >= end) return 0;
    const std::int64_t entries = lines.offsets[end] - lines.offsets[first];
    return static_cast<Work>(min(max(entries, std::int64_t{0}), p_.block_mask.entries));
  }

  const Parameters& p_;
  const Tiles& tiles_;
};

/// One block for each set. All of them go through all tiles to know what comes before their own.
template <Side kSide>
__global__ void __launch_bounds__(kThreads)
    order_tiles_of_set(const __grid_constant__ Parameters p, const __grid_constant__ Tiles tiles,
                       const __grid_constant__ TileOrder order) {
  __shared__ Work all;
  __shared__ int first_ones[kBuckets];  // pieces of long tiles; then where the set's next goes
  __shared__ int before[kBuckets];      // those of the sets before
  __shared__ int others[kBuckets];      // the set's other tiles; then where the next goes
  __shared__ int others_before, others_of_all;
  const int thread = static_cast<int>(threadIdx.x);
  const int count = static_cast<int>(tiles.count), set = static_cast<int>(tiles.set);
  const TileWork<kSide> work_of(p, tiles);
  if (thread < kBuckets) first_ones[thread] = before[thread] = others[thread] = 0;
  if (thread == 0) {
    all = 0;
    others_before = others_of_all = 0;
  }
  __syncthreads();
  Work own = 0;
  for (int tile = thread; tile < count; tile += kThreads) own += work_of(tile);
  atomicAdd(&all, own);
  __syncthreads();

  const MaskLines lines = mask_lines<kSide>(p, 0, 0);
  const Work least = static_cast<Work>(max(kLeastPiece / lines.block_size, 1));
  const Work share = max((all + tiles.slots - 1) / tiles.slots, least);
  const auto pieces_of = [share](Work work) {
    return work > share ? static_cast<int>((work + share - 1) / share) : 1;
  };
  const auto is_long = [share](Work work) { return work * kLong > share; };
  const auto bucket_of = [&](Work work) {
    if (work > share) return 0;
    const Work most = is_long(work) ? share : share / kLong;
    return 1 + static_cast<int>((most - work) * (kBuckets - 2) / max(most, Work{1}));
  };

  const int begin = static_cast<int>(blockIdx.x) * set;
  const int end = min(begin + set, count);
  for (int tile = thread; tile < count; tile += kThreads) {
    const Work work = work_of(tile);
    if (is_long(work)) {
      atomicAdd(&first_ones[bucket_of(work)], pieces_of(work));
      if (tile < begin) atomicAdd(&before[bucket_of(work)], pieces_of(work));
    } else {
      atomicAdd(&others_of_all, 1);
      if (tile < begin) atomicAdd(&others_before, 1);
      if (tile >= begin && tile < end) atomicAdd(&others[bucket_of(work)], 1);
    }
  }
  __syncthreads();
  if (thread == 0) {
    int at = 0;
    const int split = first_ones[0];
    for (int bucket = 0; bucket < kBuckets; ++bucket) {
      const int here = first_ones[bucket];
      first_ones[bucket] = at + before[bucket];
      at += here;
    }
    if (blockIdx.x == 0) *order.counts = {at + others_of_all, split};
    at += others_before;
    for (int bucket = 0; bucket < kBuckets; ++bucket) {
      const int here = others[bucket];
      others[bucket] = at;
      at += here;
    }
  }
  __syncthreads();
  for (int tile = begin + thread; tile < end; tile += kThreads) {
    const Work work = work_of(tile);
    const int pieces = pieces_of(work);
    int* const places = is_long(work) ? first_ones : others;
    const int at = atomicAdd(&places[bucket_of(work)], pieces);
    for (int piece = 0; piece < pieces; ++piece) {
      order.items[at + piece] = {tile, static_cast<short>(piece), static_cast<short>(pieces)};
    }
  }
}

}  // namespace

Status order_tiles(const Tiles& tiles, const Parameters& p, const TileOrder& order,
                   cudaStream_t stream) {
  const auto kernel = tiles.side == Side::queries ? order_tiles_of_set<Side::queries>
                                                  : order_tiles_of_set<Side::keys>;
  return launch("order_tiles", kernel, (tiles.count + tiles.set - 1) / tiles.set, kThreads, 0,
                stream, p, tiles, order);
}

}  // namespace tessera::cuda
