// The jobs of the quantise kernel that does everything in one launch (fused.cu), and the warp that
// finds them.
#pragma once

#include <algorithm>

#include "cuda/ptx/prefetch.cuh"
#include "cuda/quant/tile_team.cuh"

namespace tessera::cuda {

inline constexpr std::int64_t kChunkBytes = 4 << 20;  // of K and V: several chunks fit in L2

inline constexpr int kFarthest = 4;

/// How jobs are numbered: in period x come the means of chunk x − 1, the statistics of chunk x and
/// the tiles of its queries, and the tiles of chunk x − ahead.
struct Order {
  int chunks = 0, ahead = 1;
  int kv_planes = 0, q_planes = 0;  ///< Of a chunk, for means: of sequences and heads.
  int kv_tiles = 0, q_tiles = 0;    ///< Of a chunk, of one tensor.
  int means = 0;                    ///< Jobs of a chunk;
  int statistics = 0;
  int queries = 0;  ///< those of Q that wait for nothing, unless others convert it,
  int tiles = 0;    ///< and those that wait.

  __host__ __device__ int each() const { return means + statistics + queries + tiles; }
};

enum class Step { skip, reduce, finish, convert, none };

/// What job `x` is about.
struct Item {
  Tensor tensor = kV;
  Step step = Step::none;
  int index = 0;  ///< A tile as locate_rows counts; finish: a plane, sequences of a head in a row.
};

/// A job as its block gets it.
struct Job {
  Tensor tensor;
  Step step;
  int tiles;  ///< Of its plane.
  TileRows rows;
};

__device__ __forceinline__ Item find_item(const FusedTarget& to, const Order& order, int x) {
  const int period = x / order.each();
  if (period >= order.chunks + order.ahead) return {};
  const bool k_too = to.k_means != nullptr;
  // Of chunk `chunk`: tiles of two tensors in turn, then those of Q.
  const auto tiles = [&](Step step, int chunk, int at, bool two) -> Item {
    if (chunk < 0 || chunk >= order.chunks) return {kV, Step::skip, 0};
    const int of_kv = order.kv_tiles * (two ? 2 : 1);
    if (at >= of_kv) return {kQ, step, chunk * order.q_tiles + at - of_kv};
    return {two && at % 2 == 0 ? kK : kV, step, chunk * order.kv_tiles + (two ? at / 2 : at)};
  };
  int rest = x % order.each();
  if (rest < order.means) {
    const int chunk = period - 1;
    if (chunk < 0 || chunk >= order.chunks) return {kV, Step::skip, 0};
    const int of_k = k_too ? order.kv_planes : 0;
    if (rest >= of_k) return {kQ, Step::finish, chunk * order.q_planes + rest - of_k};
    return {kK, Step::finish, chunk * order.kv_planes + rest};
  }
  rest -= order.means;
  if (rest < order.statistics) return tiles(Step::reduce, period, rest, k_too);
  rest -= order.statistics;
  if (rest < order.queries) {
    if (period >= order.chunks) return {kV, Step::skip, 0};
    return {kQ, Step::convert, period * order.q_tiles + rest};
  }
  return tiles(Step::convert, period - order.ahead, rest - order.queries, true);
}

/// The warp that finds jobs.
template <typename T>
class Finder {
 public:
  __device__ Finder(const Parameters& p, const FusedTarget& to, const Order& order)
      : p_(p), to_(to), order_(order) {}

  /// Whole warps call it.
  __device__ __forceinline__ Job next() {
    int number = 0;
    if (threadIdx.x % kWarpSize == 0) number = atomicAdd(to_.counter, 1);
    const Item item = find_item(to_, order_, __shfl_sync(~0u, number, 0));
    Job job;
    job.tensor = item.tensor;
    job.step = item.step;
    if (item.step == Step::none || item.step == Step::skip) return job;
    const Source& source = source_of(to_, item.tensor);
    if (item.step == Step::finish) {
      const int h = item.index / p_.batch;
      if (h < source.heads) {
        job.rows = rows_of_sequence(p_, source, item.index % p_.batch, h);
      } else {
        job.step = Step::skip;
      }
    } else if (!locate_rows(p_, source, item.index, job.rows)) {
      job.step = Step::skip;
    }
    if (job.step == Step::skip) return job;
    const Sequence sequence = sequence_of(p_, job.rows.b);
    const int count = source.queries ? sequence.q_rows : sequence.kv_rows;
    job.tiles = (count + kTileTokens - 1) / kTileTokens;
    const bool again = item.tensor == kV || means_of(to_, item.tensor) != nullptr;
    if (item.step == Step::reduce || (item.step == Step::convert && !again)) {
      prefetch(source, job.rows);
    }
    return job;
  }

 private:
  __device__ __forceinline__ void prefetch(const Source& source, const TileRows& rows) const {
    constexpr int kLine = 128;
    const int bytes = source.columns * static_cast<int>(sizeof(T));
    const int end = min(rows.begin + kTileTokens, rows.length);
    const T* from = row_of<const T>(source.rows, rows.b, rows.h, rows.first);
#pragma unroll 4
    for (int row = rows.begin + static_cast<int>(threadIdx.x % kWarpSize); row < end;
         row += kWarpSize) {
      const auto* line = reinterpret_cast<const std::byte*>(from + row * source.rows.stride_s);
      for (int at = 0; at < bytes; at += kLine) ptx::prefetch_l2(line + at);
    }
  }

  const Parameters& p_;
  const FusedTarget& to_;
  const Order& order_;
};

/// `in_flight`: so many jobs may be under way at a time. The farther statistics are ahead of what
/// needs them, the less is waited for, and the more has to stay in L2.
inline Order make_order(const Parameters& p, const FusedTarget& target, std::int64_t in_flight) {
  if (p.batch == 0) return {};
  // Whole planes; of packed problems whole heads.
  const auto planes = [&](const Source& source) {
    return std::int64_t{source.heads} * (p.varlen ? 1 : p.batch);
  };
  const auto tiles_of_plane = [&](const Source& source) {
    return tile_count(p, source) / std::max<std::int64_t>(planes(source), 1);
  };
  const std::int64_t bytes = tiles_of_plane(target.k) * kTileTokens *
                             (target.k.columns + target.v.columns) * size_of(target.k.dtype);
  const std::int64_t most = std::max<std::int64_t>(planes(target.k), 1);
  const std::int64_t at_once =
      std::clamp<std::int64_t>(kChunkBytes / std::max<std::int64_t>(bytes, 1), 1, most);
  Order order;
  order.chunks = static_cast<int>((most + at_once - 1) / at_once);
  order.kv_tiles = static_cast<int>(at_once * tiles_of_plane(target.k));
  order.q_tiles = static_cast<int>((planes(target.q) + order.chunks - 1) / order.chunks *
                                   tiles_of_plane(target.q));
  const int sequences = p.varlen ? p.batch : 1;
  order.kv_planes = static_cast<int>(at_once) * sequences;
  order.q_planes =
      static_cast<int>((planes(target.q) + order.chunks - 1) / order.chunks) * sequences;
  const bool smooth_q = target.q_means != nullptr;
  order.means = (target.k_means != nullptr ? order.kv_planes : 0) + (smooth_q ? order.q_planes : 0);
  order.statistics = order.kv_tiles * (target.k_means != nullptr ? 2 : 1);
  order.tiles = order.kv_tiles * 2;
  if (smooth_q) order.statistics += order.q_tiles;
  if (target.q_values != nullptr) (smooth_q ? order.tiles : order.queries) += order.q_tiles;
  // A chunk's statistics and its own tiles have that many jobs of other chunks between them.
  while (order.ahead < kFarthest && order.ahead * order.each() + order.queries < in_flight) {
    ++order.ahead;
  }
  return order;
}

}  // namespace tessera::cuda
