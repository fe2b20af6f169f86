// Split-KV forward (Flash-Decoding, Dao et al. 2023), for f16 and bf16.
//
// With few query rows a pass is bound by reading K and V once. One block takes 16 rows: the query
// heads that share a key head side by side (GQA packing), and as many queries as fit, so that K and
// V are read once for all of them. It takes one of `splits` ranges of their keys.
//   Every warp goes alone through its share of the range, 16 keys at a time, with C.stages tiles of
//   K and V under way (cp.async); no barrier between warps:
//     S [16 × 16] = q kᵀ,  online softmax,  O [16 × Dv] += P v          (mma.sync, registers)
//   Then the block merges its warps' results by their LSE and writes one partial result,
//   normalised:
//     O [16 × Dv] f32, LSE [16]  →  workspace
// The first split's counts the sink. A second kernel merges the splits, one warp for each row, and
// writes o and lse.
// Partial results are merged in the order of warps and splits: deterministic.
#include <algorithm>

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/config.hpp"
#include "cuda/algo/merge.cuh"
#include "cuda/algo/merge_splits.hpp"
#include "cuda/algo/score.cuh"
#include "cuda/algo/softmax.cuh"
#include "cuda/host/device.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/host/launch.hpp"
#include "cuda/host/parameters.hpp"
#include "cuda/sm80/split_kv.hpp"
#include "cuda/tile/products.cuh"

namespace tessera::cuda::sm80 {
namespace {

constexpr int kRows = 16;  ///< Query rows of a block: one row tile of mma.
constexpr int kKeys = 16;  ///< Keys of a warp's tile.
constexpr int kBlocksPerMultiprocessor = 2;

struct SplitConfig {
  DType dtype;
  int head_dim;  ///< Larger of D and Dv, at most.
  int warps;
  int stages;
  int halves;  ///< 2: two warps go through the same keys, each for half of the columns of v and o.
};

template <SplitConfig C>
struct SplitTraits {
  using T = std::conditional_t<C.dtype == DType::f16, __half, __nv_bfloat16>;
  using Tile = SharedTile<T, kKeys, C.head_dim>;              ///< 16 rows of q or k.
  using VTile = SharedTile<T, kKeys, C.head_dim / C.halves>;  ///< 16 rows of a warp's columns of v.
  static constexpr int kThreads = C.warps * kWarpSize;
  static constexpr int kStreams = C.warps / C.halves;  ///< Warps with keys of their own.
  static constexpr int kStageBytes = Tile::kBytes + VTile::kBytes;
  static constexpr int kPipeBytes = C.warps * C.stages * kStageBytes;
  static constexpr int kSharedBytes = Tile::kBytes + kPipeBytes;
  static_assert(kPipeBytes >= kStreams * kRows * (C.head_dim + 1) * static_cast<int>(sizeof(float)),
                "the warps' results take the place of K and V");
};

/// How rows of a tile map to heads and queries: row r is query r / heads, head r % heads.
struct Packing {
  int heads;    ///< Neighbouring query heads of one key head in a tile.
  int queries;  ///< kRows / heads.
  int chunks;   ///< Tiles that a key head's group takes.
  int splits;
};

__device__ __forceinline__ std::int64_t row_number(const Parameters& p, int b, int h, int token) {
  const std::int64_t sequence = p.varlen ? 0 : b;
  return (sequence * p.heads_q + h) * p.seq_q + token;
}

/// Loads 16 rows from row0 on; one warp. Rows that do not exist or are not listed become zero.
template <typename Tile, typename T>
__device__ __forceinline__ void load_keys(const Tile& tile, const T* rows, std::int64_t stride,
                                          bool vectors, int row0, int count, int columns,
                                          bool listed) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int first = 0; first < kKeys * Tile::kRowVectors; first += kWarpSize) {
    const int row = (first + lane) / Tile::kRowVectors;
    const int vector = (first + lane) % Tile::kRowVectors;
    const int column = vector * Tile::kVector;
    const bool exists = listed && row0 + row < count && column < columns;
    const T* from = exists ? rows + (row0 + row) * stride + column : rows;
    if (vectors) {
      ptx::cp_async_16(tile.at(row, vector), from, exists ? 16 : 0);
      continue;
    }
    alignas(16) T elements[Tile::kVector];
#pragma unroll
    for (int e = 0; e < Tile::kVector; ++e) {
      elements[e] = exists && column + e < columns ? from[e] : from_float<T>(0);
    }
    const auto* w = reinterpret_cast<const std::uint32_t*>(elements);
    ptx::store_shared_16(tile.at(row, vector), w[0], w[1], w[2], w[3]);
  }
}

template <typename ConfigOf>
__global__ void __launch_bounds__(SplitTraits<ConfigOf::value>::kThreads, kBlocksPerMultiprocessor)
    split_kv(const __grid_constant__ Parameters p, const __grid_constant__ Packing packing,
             const __grid_constant__ Partials partials) {
  constexpr SplitConfig C = ConfigOf::value;
  using Traits = SplitTraits<C>;
  using T = typename Traits::T;
  using Tile = typename Traits::Tile;
  using VTile = typename Traits::VTile;
  constexpr int kColumns = VTile::kCols;  // of v and o, for one warp
  extern __shared__ __align__(128) std::byte shared[];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int stream = warp / C.halves;
  const int column0 = warp % C.halves * kColumns;

  int x = static_cast<int>(blockIdx.x);
  const int split = x % packing.splits;
  x /= packing.splits;
  const int chunk = x % packing.chunks;
  x /= packing.chunks;
  const int h_kv = x % p.heads_kv;
  TileIndex tile;
  if (!locate_tile<Side::queries>(p, x / p.heads_kv, packing.queries, tile)) return;
  const int b = tile.b, i0 = tile.begin;
  const Sequence sequence = sequence_of(p, b);
  const int h0 = h_kv * p.group + chunk * packing.heads;
  const int heads = min(packing.heads, (h_kv + 1) * p.group - h0);
  const Range queries{i0, min(i0 + packing.queries, sequence.q_len)};

  // Row r of the tile, −1 where there is none that is used.
  const auto head_of = [&](int r) { return h0 + min(r % packing.heads, heads - 1); };
  const auto query_of = [&](int r) {
    return r < packing.heads * packing.queries && r % packing.heads < heads ? i0 + r / packing.heads
                                                                            : -1;
  };

  const Tile q{ptx::shared_address(shared)};
  for (int y = static_cast<int>(threadIdx.x); y < kRows * Tile::kRowVectors;
       y += Traits::kThreads) {
    const int r = y / Tile::kRowVectors;
    const int i = query_of(r);
    alignas(16) T elements[Tile::kVector];
#pragma unroll
    for (int e = 0; e < Tile::kVector; ++e) {
      const int d = y % Tile::kRowVectors * Tile::kVector + e;
      const bool exists = i >= 0 && i < queries.end && d < p.head_dim;
      elements[e] =
          exists ? row_of<const T>(p.q, b, head_of(r), sequence.q_begin + i)[d] : from_float<T>(0);
    }
    const auto* w = reinterpret_cast<const std::uint32_t*>(elements);
    ptx::store_shared_16(q.at(r, y % Tile::kRowVectors), w[0], w[1], w[2], w[3]);
  }
  __syncthreads();

  // This split's keys: whole tiles, as even as they go.
  Range keys{0, 0};
  if (!queries.empty()) keys = visible_keys(p, sequence, queries.begin, queries.end);
  const int first_tile = keys.begin / kKeys;
  const int tiles = keys.empty() ? 0 : (keys.end + kKeys - 1) / kKeys - first_tile;
  const int per_split = (tiles + packing.splits - 1) / packing.splits;
  keys.begin = max(keys.begin, (first_tile + split * per_split) * kKeys);
  keys.end = min(keys.end, (first_tile + (split + 1) * per_split) * kKeys);

  const T* k = row_of<const T>(p.k, b, h_kv, sequence.kv_begin);
  const T* v = row_of<const T>(p.v, b, h_kv, sequence.kv_begin) + column0;
  const std::uint32_t pipe =
      q.base + Tile::kBytes + static_cast<std::uint32_t>(warp) * C.stages * Traits::kStageBytes;
  const auto k_stage = [&](int stage) { return Tile{pipe + stage * Traits::kStageBytes}; };
  const auto v_stage = [&](int stage) { return VTile{k_stage(stage).base + Tile::kBytes}; };

  BlockWalk<Side::queries, kKeys> walk(p, b, h0, queries, keys);
  int to_skip = stream;  // tiles of other warps before this warp's next
  const auto load_next = [&](Visit& visit, int stage) {
    bool more = true;
    for (; more && to_skip >= 0; --to_skip) more = walk.next(visit);
    to_skip = Traits::kStreams - 1;
    if (!more) visit.begin = -1;
    if (more) {
      const bool listed = (visit.listed & 1) != 0;
      load_keys(k_stage(stage), k, p.k.stride_s, p.k.vectors, visit.begin, sequence.kv_len,
                p.head_dim, listed);
      load_keys(v_stage(stage), v, p.v.stride_s, p.v.vectors, visit.begin, sequence.kv_len,
                p.head_dim_v - column0, listed);
    }
    ptx::cp_async_commit();
  };

  const int own_rows[2] = {lane / 4, lane / 4 + 8};
  const HeadScores<T> scores[2] = {{p, sequence, b, head_of(own_rows[0])},
                                   {p, sequence, b, head_of(own_rows[1])}};
  const int own_queries[2] = {query_of(own_rows[0]), query_of(own_rows[1])};
  const bool plain = !(p.softcap > 0) && p.bias.data == nullptr && p.alibi_slopes == nullptr &&
                     p.mask.data == nullptr;

  OnlineSoftmax<T, 1> softmax(1.0f);
  float o[1][kColumns / 8][4] = {};
  Visit queue[C.stages - 1];  // tiles under way
#pragma unroll
  for (int s = 0; s < C.stages - 1; ++s) load_next(queue[s], s);
  for (int stage = 0; queue[0].begin >= 0; stage = (stage + 1) % C.stages) {
    const Visit visit = queue[0];
#pragma unroll
    for (int s = 1; s < C.stages - 1; ++s) queue[s - 1] = queue[s];
    // Element e of column tile n is this thread's row `half`, key j.
    const auto for_each_element = [&](auto&& body) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          body(n, e, e / 2, visit.begin + 8 * n + 2 * (lane % 4) + e % 2);
        }
      }
    };
    // A bit for each, in loops that are not unrolled: what they ask may take many registers.
    const auto element_bits = [&](auto&& of) {
      unsigned bits = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll 1
        for (int x = 0; x < kKeys / 4; ++x) {
          const int j = visit.begin + x / 2 * 8 + 2 * (lane % 4) + x % 2;
          bits |= static_cast<unsigned>(of(half, j)) << (x / 2 * 4 + half * 2 + x % 2);
        }
      }
      return bits;
    };
    ptx::cp_async_wait<C.stages - 2>();
    __syncwarp();
    load_next(queue[C.stages - 2], (stage + C.stages - 1) % C.stages);

    float s[1][kKeys / 8][4] = {};
    multiply_rows<T>(s, q, 0, k_stage(stage), 0);
    const Range columns{visit.begin, visit.begin + kKeys};
    const bool tested = !plain || !visit.full || !all_visible(p, sequence, queries, columns);
    if (tested) {
      const unsigned seen = element_bits([&](int half, int j) {
        const int i = own_queries[half];
        return i >= 0 && scores[half].attends(i, j) &&
               (visit.full || block_mask_allows(p, b, head_of(own_rows[half]), i, j));
      });
      for_each_element([&](int n, int e, int half, int j) {
        float& element = s[0][n][e];
        const bool attends = (seen >> (4 * n + e) & 1u) != 0;
        element = attends ? scores[half].score(element, own_queries[half], j).s * kLog2e
                          : minus_infinity();
      });
    } else {
      for_each_element([&](int n, int e, int, int) { s[0][n][e] *= p.scale * kLog2e; });
    }
    std::uint32_t weights[1][kKeys / 16][4];
    softmax.weigh(s, weights, [&](int, int half, float by) {
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        o[0][n][2 * half] *= by;
        o[0][n][2 * half + 1] *= by;
      }
    });
    if (p.dropout_threshold != 0) {
      const unsigned kept = element_bits(
          [&](int half, int j) { return scores[half].keep(own_queries[half], j) != 0; });
      for_each_element([&](int n, int e, int half, int) {
        const unsigned word = e % 2 == 0 ? 0x0000ffffu : 0xffff0000u;
        if ((kept >> (4 * n + e) & 1u) == 0) weights[0][0][2 * n + half] &= ~word;
      });
    }
    multiply_registers<T>(o, weights, v_stage(stage), 0, 0);
  }

  // Merge the warps, in the memory of their pipelines.
  ptx::cp_async_wait<0>();
  __syncthreads();
  auto* warp_o = reinterpret_cast<float*>(shared + Tile::kBytes);    // [streams][kRows][head_dim]
  float* warp_lse = warp_o + Traits::kStreams * kRows * C.head_dim;  // [streams][kRows]
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = own_rows[half];
    const auto [scale, lse] = softmax.finish(0, half, minus_infinity());
    if (lane % 4 == 0) warp_lse[stream * kRows + r] = lse;  // the same from both of a pair
    float* row = warp_o + (stream * kRows + r) * C.head_dim + column0 + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      row[8 * n] = o[0][n][2 * half] * scale;
      row[8 * n + 1] = o[0][n][2 * half + 1] * scale;
    }
  }
  __syncthreads();
  for (int r = warp; r < kRows; r += C.warps) {
    const int i = query_of(r);
    if (i < 0 || i >= sequence.q_rows) continue;
    // The first split has the sink, which is one more score without a value.
    const bool with_sink = p.sink != nullptr && split == 0;
    const Merged merged = merge(Traits::kStreams, with_sink ? p.sink[head_of(r)] : minus_infinity(),
                                [&](int w) { return warp_lse[w * kRows + r]; });
    const bool used = i < sequence.q_len;
    const std::int64_t at =
        split * partials.rows + row_number(p, b, head_of(r), sequence.q_begin + i);
    if (lane == 0) partials.lse[at] = used ? merged.lse() : minus_infinity();
    for (int d = lane; d < p.head_dim_v; d += kWarpSize) {
      float sum = 0;
      for (int w = 0; w < Traits::kStreams; ++w) {
        sum += merged.weight(warp_lse[w * kRows + r]) * warp_o[(w * kRows + r) * C.head_dim + d];
      }
      partials.o[at * p.head_dim_v + d] = used ? sum : 0.0f;
    }
  }
}

template <SplitConfig C>
Status launch_split_kv(const Parameters& p, const Packing& packing, const Partials& partials,
                       cudaStream_t stream) {
  const std::int64_t blocks =
      tiles_per_head(p, p.seq_q, packing.queries) * p.heads_kv * packing.chunks * packing.splits;
  return launch("split_kv", split_kv<Constant<C>>, blocks, SplitTraits<C>::kThreads,
                SplitTraits<C>::kSharedBytes, stream, p, packing, partials);
}

/// Configs by head dim, for chips with 164 KB of shared memory or more a multiprocessor (two
/// blocks) and for those with 100 KB (one block).
template <DType kDType>
Status launch_by_head_dim(int shared_bytes, const Parameters& p, const Packing& packing,
                          const Partials& partials, cudaStream_t stream) {
  constexpr SplitConfig k64{kDType, 64, 6, 4, 1};
  constexpr SplitConfig k128{kDType, 128, 4, 3, 1}, kSmall128{kDType, 128, 3, 3, 1};
  constexpr SplitConfig k256{kDType, 256, 4, 2, 2}, kSmall256{kDType, 256, 2, 3, 2};
  const int head_dim = std::max(p.head_dim, p.head_dim_v);
  if (head_dim <= 64) return launch_split_kv<k64>(p, packing, partials, stream);
  if (head_dim <= 128) {
    return shared_bytes >= SplitTraits<k128>::kSharedBytes
               ? launch_split_kv<k128>(p, packing, partials, stream)
               : launch_split_kv<kSmall128>(p, packing, partials, stream);
  }
  return shared_bytes >= SplitTraits<k256>::kSharedBytes
             ? launch_split_kv<k256>(p, packing, partials, stream)
             : launch_split_kv<kSmall256>(p, packing, partials, stream);
}

/// A mask of each query head's own needs tiles of one head.
Packing packing_for(std::int64_t group, bool one_head, int splits) {
  const int heads = one_head ? 1 : static_cast<int>(std::min<std::int64_t>(group, kRows));
  return {heads, kRows / heads, static_cast<int>((group + heads - 1) / heads), splits};
}

/// Splits that fill the chip: the fewest that come within a tenth of the best use of its blocks.
int choose_splits(const Problem& problem) {
  constexpr std::int64_t kLeastKeys = 256;
  const Packing packing = packing_for(problem.group(), false, 1);
  const std::int64_t tiles =
      problem.varlen ? problem.batch
                     : problem.batch * ((problem.seq_q + packing.queries - 1) / packing.queries);
  const std::int64_t blocks = std::max<std::int64_t>(tiles * problem.heads_kv * packing.chunks, 1);
  const std::int64_t slots =
      kBlocksPerMultiprocessor * device_info(problem.device.index).multiprocessors;
  const std::int64_t most =
      std::clamp<std::int64_t>(std::min(problem.seq_kv / kLeastKeys, 2 * slots / blocks), 1, 128);
  const auto use = [&](std::int64_t splits) {
    const std::int64_t waves = (blocks * splits + slots - 1) / slots;
    return static_cast<double>(blocks * splits) / static_cast<double>(waves * slots);
  };
  double best = 0;
  for (std::int64_t splits = 1; splits <= most; ++splits) best = std::max(best, use(splits));
  int splits = 1;
  while (use(splits) < 0.9 * best) ++splits;
  return splits;
}

class SplitKv final : public CudaKernel {
 public:
  explicit SplitKv(const Problem& problem) : CudaKernel(problem), splits_(choose_splits(problem)) {}

  std::string config() const override {
    const Packing packing = packing_for(problem_.group(), false, splits_);
    return std::to_string(splits_) + " splits of the keys, " + std::to_string(packing.heads) +
           " heads x " + std::to_string(packing.queries) + " queries a tile";
  }
  std::size_t workspace_bytes() const override {
    return row_scalar_count(problem_) * splits_ * (problem_.head_dim_v + 1) * sizeof(float);
  }

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override {
    const Parameters p = make_parameters(problem_, arguments);
    const bool own_masks = p.block_mask.row_offsets != nullptr && p.block_mask.heads > 1;
    const Packing packing = packing_for(problem_.group(), own_masks, splits_);
    Partials partials;
    partials.rows = static_cast<std::int64_t>(row_scalar_count(problem_));
    partials.o = reinterpret_cast<float*>(arguments.workspace);
    partials.lse = partials.o + splits_ * partials.rows * problem_.head_dim_v;
    const bool f16 = problem_.dtype == DType::f16;
    const int shared = device_info(problem_.device.index).shared_bytes;
    const Status split =
        f16 ? launch_by_head_dim<DType::f16>(shared, p, packing, partials, stream)
            : launch_by_head_dim<DType::bf16>(shared, p, packing, partials, stream);
    if (!split.ok()) return split;
    return merge_splits(problem_.dtype, p, partials, splits_, stream);
  }

 private:
  const int splits_;
};

std::string reject(const Problem& problem) {
  constexpr std::int64_t kMostQueries = 16;
  constexpr std::int64_t kMostRows = 64;
  if (std::string reason = reject_common(problem); !reason.empty()) return reason;
  if (problem.pass != Pass::forward) return "forward only";
  if (problem.dtype == DType::f32) return "f16 and bf16 only";
  if (std::max(problem.head_dim, problem.head_dim_v) > 256) return "head dims up to 256";
  const std::int64_t queries =
      problem.varlen && problem.batch > 0 ? problem.seq_q / problem.batch : problem.seq_q;
  if (queries > kMostQueries || queries * problem.group() > kMostRows) {
    return std::string("few query rows only: at most ") + std::to_string(kMostQueries) +
           (problem.varlen ? " queries a sequence on average" : " queries") + " and " +
           std::to_string(kMostRows) + " with the heads of a group";
  }
  return {};
}

}  // namespace

const Row kSplitKvRow{
    "cuda_split_kv",
    "f16 bf16, forward, few query rows (decoding), head dims up to 256, every feature",
    no_device,
    reject,
    [](const Problem& problem) -> std::unique_ptr<Kernel> {
      return std::make_unique<SplitKv>(problem);
    },
};

}  // namespace tessera::cuda::sm80
