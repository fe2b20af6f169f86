// The f32 backward pass above head dim 256: the two kernels of f32_backward.cuh, whose gradients of
// 16 rows are more than a warp's registers hold.
//
//   f32_d_kv_slices   one tile of C.outer keys of a key head; walks through the tiles of C.inner
//                     queries that see them, of every query head of the group
//   f32_d_q_slices    one tile of C.outer queries of a head; walks through the tiles of their keys
//
// Every warp owns a slice of the columns of all tensors: of the outer rows, of the inner ones and
// of the gradients, for all rows of the tile. In a step
//
//   s, d_p [outer × inner]: each warp multiplies its columns; the parts of all are added up through
//                           shared memory, between two barriers
//   p, d_s:                 every warp computes all of them, and splits them in its registers
//   d_v += pᵀ d_O, d_k += d_sᵀ Q  or  d_q += d_s K:  each warp its columns
//
// Seven products, none computed twice; a fragment B is multiplied with all rows of the tile. Only a
// warp itself reads what it has loaded, so it waits for its own copies alone: there is one inner
// tile of each tensor, which is loaded again while the other one is multiplied. All rows lie in
// shared memory as f32, and each element is split by one warp where it is read.
//
// Hazards: the parts that a step stores are read between its two barriers. Sums take the place of a
// part that was never stored, and scalars alternate between two places: both are read behind the
// second barrier, and a warp is past that when others come to the first one of the next step.
#pragma once

#include "cuda/algo/config.hpp"
#include "cuda/algo/tile_order.cuh"
#include "cuda/algo/uniform.cuh"
#include "cuda/sm80/f32_backward_scores.cuh"
#include "cuda/sm80/f32_backward_variants.hpp"
#include "cuda/tile/f32_tile.cuh"

namespace tessera::cuda::sm80 {

/// The work of one warp.
template <F32BackwardConfig C>
class F32BackwardSlice {
  static constexpr int kColumns = C.head_dim / C.warps;
  static constexpr int kColumnTiles = kColumns / 8;
  static constexpr int kFragments = 2 * C.outer / 16 * C.inner / 8;  ///< Of s and d_p.
  static_assert(kColumns * C.warps == C.head_dim && kColumns % 32 == 0);
  static_assert(C.stages == 1 && C.inner == 16, "one k step of the second products");
  static_assert(kFragments <= C.warps, "warps add up one fragment each");

 public:
  static constexpr int kThreads = C.warps * kWarpSize;
  static constexpr int kRowTiles = C.outer / 16;
  static constexpr int kScoreTiles = C.inner / 8;

  using Outer = F32Tile<C.outer, C.head_dim>;
  using Inner = F32Tile<C.inner, C.head_dim>;
  using Scores = float[kRowTiles][kScoreTiles][4];
  using Accumulator = float[kRowTiles][kColumnTiles][4];

  static constexpr int kInnerAt = 2 * Outer::kBytes;
  static constexpr int kPartsAt = kInnerAt + 2 * Inner::kBytes;
  static constexpr int kScalarsAt = kPartsAt + kFragments * C.warps * kWarpSize * 16;
  static constexpr int kScalars = 2 * C.inner;  ///< lse and delta of one step.
  static_assert(kScalarsAt + 2 * kScalars * 4 == static_cast<int>(C.shared_bytes()));

  __device__ F32BackwardSlice()
      : warp_(uniform(static_cast<int>(threadIdx.x) / kWarpSize)), column_(warp_ * kColumns) {}

  /// Starts to fill the slice of a tile with rows [row0, …) of a head: `head` points at row 0, of
  /// which `count` exist. The other arguments are those of load_tile (shared_tile.cuh).
  template <typename Tile>
  __device__ __forceinline__ void load(const Tile& tile, const float* head, const Rows& rows,
                                       int row0, int count, int columns, unsigned listed) const {
    const Tile slice = tile.columns_from(column_);
    const auto exists = [&](int row) {
      return row0 + row < count && (listed >> (row / 16) & 1u) != 0;
    };
    head += row0 * rows.stride_s + column_;
    columns -= column_;
    if (rows.vectors) {
      const int row = lane_id() / 4, vector = lane_id() % 4;
#pragma unroll
      for (int pass = 0; pass < Tile::kRows; pass += 8) {
        const float* from = head + (row + pass) * rows.stride_s + 4 * vector;
        const int used = exists(row + pass) ? columns : 0;
#pragma unroll
        for (int x = 0; x < kColumns / 4; x += 4) {
          ptx::cp_async_16(slice.at(row + pass, vector + x), from + 4 * x,
                           4 * (vector + x) < used ? 16 : 0);
        }
      }
    } else {
#pragma unroll 1
      for (int x = lane_id(); x < Tile::kRows * kColumns / 4; x += kWarpSize) {
        const int row = x / (kColumns / 4), vector = x % (kColumns / 4);
        const float* from = head + row * rows.stride_s + 4 * vector;
        std::uint32_t words[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          words[e] = exists(row) && 4 * vector + e < columns ? __float_as_uint(from[e]) : 0;
        }
        ptx::store_shared_16(slice.at(row, vector), words[0], words[1], words[2], words[3]);
      }
    }
  }

  /// Copies but the kPending that the warp has started last are there.
  template <int kPending>
  __device__ __forceinline__ static void arrive() {
    ptx::cp_async_wait<kPending>();
    __syncwarp();
  }

  /// s = outer · innerᵀ, the part of the slice.
  template <Operand kFirst = Operand::a>
  __device__ __forceinline__ void multiply_rows(Scores& s, const Outer& outer,
                                                const Inner& inner) const {
#pragma unroll
    for (int x = 0; x < kRowTiles * kScoreTiles * 4; ++x) {
      s[x / (kScoreTiles * 4)][x / 4 % kScoreTiles][x % 4] = 0;
    }
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
      SplitOperand a[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        a[r] = read_split_a(outer.columns_from(column_), 16 * r, k);
      }
      multiply_split<1, kFirst>(s, a, [&](int c) {
        return read_split_b_transposed(inner.columns_from(column_), 16 * c, k);
      });
    }
  }

  /// From this slice's parts of two products to the sums of all slices.
  __device__ __forceinline__ void add_parts(Scores& s, Scores& d_p, std::uint32_t parts) const {
    float sum[4];
    store_parts(parts, s, 0, sum);
    store_parts(parts, d_p, kFragments / 2, sum);
    __syncthreads();
    if (warp_ < kFragments) {
#pragma unroll
      for (int other = 1; other < C.warps; ++other) {
        std::uint32_t part[4];
        ptx::load_shared_16(part, part_at(parts, warp_, (warp_ + other) % C.warps));
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[e] += __uint_as_float(part[e]);
      }
      store_part(part_at(parts, warp_, warp_), sum);
    }
    __syncthreads();
    load_sums(parts, s, 0);
    load_sums(parts, d_p, kFragments / 2);
  }

  /// acc += scores · inner, the columns of the slice.
  __device__ __forceinline__ void multiply_scores(Accumulator& acc, const Scores& scores,
                                                  const Inner& inner) const {
    SplitOperand a[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) a[r] = split_operand(scores[r], 0);
    multiply_split<1>(acc, a,
                      [&](int c) { return read_split_b(inner.columns_from(column_), 0, c); });
  }

  /// Stores the slice of a gradient: rows [row0, …) of a head, of which `count` exist.
  __device__ __forceinline__ void store(const Rows& rows, int b, int h, int begin, int row0,
                                        int count, int columns, const Accumulator& acc,
                                        float factor) const {
    if (rows.data == nullptr) return;
    store_fragments(row_of<float>(rows, b, h, begin), rows, row0, count, column_, columns, acc,
                    factor);
  }

 private:
  /// Where this lane's elements of fragment x lie as slice `warp` has them; as fragment x's own
  /// warp would, their sums.
  __device__ __forceinline__ static std::uint32_t part_at(std::uint32_t parts, int x, int warp) {
    return parts + ((x * C.warps + warp) * kWarpSize + lane_id()) * 16;
  }
  __device__ __forceinline__ static void store_part(std::uint32_t to, const float (&part)[4]) {
    ptx::store_shared_16(to, __float_as_uint(part[0]), __float_as_uint(part[1]),
                         __float_as_uint(part[2]), __float_as_uint(part[3]));
  }

  /// Stores the fragments of a product, which are numbered from `first` on, but for the warp's own.
  __device__ __forceinline__ void store_parts(std::uint32_t parts, const Scores& product, int first,
                                              float (&own)[4]) const {
#pragma unroll
    for (int x = 0; x < kFragments / 2; ++x) {
      const auto& part = product[x / kScoreTiles][x % kScoreTiles];
      if (first + x != warp_) {
        store_part(part_at(parts, first + x, warp_), part);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) own[e] = part[e];
      }
    }
  }

  __device__ __forceinline__ static void load_sums(std::uint32_t parts, Scores& product,
                                                   int first) {
#pragma unroll
    for (int x = 0; x < kFragments / 2; ++x) {
      std::uint32_t words[4];
      ptx::load_shared_16(words, part_at(parts, first + x, first + x));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        product[x / kScoreTiles][x % kScoreTiles][e] = __uint_as_float(words[e]);
      }
    }
  }

  const int warp_;
  const int column_;  ///< The slice's first.
};

template <typename ConfigOf>
__global__ void __launch_bounds__(F32BackwardSlice<ConfigOf::value>::kThreads, 1)
    f32_d_kv_slices(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g,
                    int tiles) {
  constexpr F32BackwardConfig C = ConfigOf::value;
  using S = F32BackwardSlice<C>;
  extern __shared__ __align__(128) std::byte shared[];
  TileIndex tile;
  tile.h = static_cast<int>(blockIdx.x) / tiles;
  if (!locate_tile<Side::keys>(p, static_cast<int>(blockIdx.x) % tiles, C.outer, tile)) return;
  const int b = uniform(tile.b), h_kv = uniform(tile.h), j0 = uniform(tile.begin);
  const Sequence sequence = uniform(sequence_of(p, b));
  const Range keys{j0, min(j0 + C.outer, sequence.kv_len)};
  Range queries;
  if (!keys.empty()) queries = uniform(seeing_queries(p, sequence, keys.begin, keys.end));

  const S slice;
  const std::uint32_t base = ptx::shared_address(shared);
  const typename S::Outer k{base}, v{base + S::Outer::kBytes};
  const typename S::Inner q{base + S::kInnerAt}, d_o{q.base + S::Inner::kBytes};
  const auto load_keys = [&](const typename S::Outer& to, const Rows& rows, int columns) {
    slice.load(to, row_of<const float>(rows, b, h_kv, sequence.kv_begin), rows, j0, sequence.kv_len,
               columns, listed_keys(p, b, h_kv, keys));
  };
  const auto load_queries = [&](const typename S::Inner& to, const Rows& rows, int columns,
                                const Visit& visit, int h) {
    slice.load(to, row_of<const float>(rows, b, h, sequence.q_begin), rows, visit.begin,
               sequence.q_len, columns, visit.listed);
  };

  typename S::Accumulator d_k = {}, d_v = {};
  GroupWalk<C.inner> walk(p, b, h_kv, keys, queries);
  Visit next;
  int next_h = 0;
  bool more = walk.next(next, next_h);
  if (more) {
    load_keys(k, p.k, p.head_dim);
    load_queries(q, p.q, p.head_dim, next, next_h);
    ptx::cp_async_commit();
    load_keys(v, p.v, p.head_dim_v);
    load_queries(d_o, g.d_o, p.head_dim_v, next, next_h);
    ptx::cp_async_commit();
  }
  for (int step = 0; more; ++step) {
    const Visit now = uniform(next);
    const int h = uniform(next_h);
    float* const lse = reinterpret_cast<float*>(shared + S::kScalarsAt) + step % 2 * S::kScalars;
    const int thread = static_cast<int>(threadIdx.x);
    RowGradientScalars row;
    if (thread < C.inner) row = row_scalars(p, g, sequence, b, h, now.begin + thread);
    typename S::Scores s, d_p;
    S::template arrive<1>();
    slice.template multiply_rows<Operand::b>(s, k, q);
    S::template arrive<0>();
    slice.multiply_rows(d_p, v, d_o);
    if (thread < C.inner) {
      row = row.hidden();
      lse[thread] = row.lse;
      lse[C.inner + thread] = row.delta;
    }
    slice.add_parts(s, d_p, base + S::kPartsAt);
    const ScorePart<float, S::kRowTiles, S::kScoreTiles> rules(p, sequence, b, h, j0, now.begin,
                                                               {lse, lse + C.inner});
    const bool positions =
        !all_visible(p, sequence, {now.begin, now.begin + C.inner}, {j0, j0 + C.outer});
    differentiate<C.extras>(s, d_p, rules, p, positions, now.full != 0);

    more = walk.next(next, next_h);
    slice.multiply_scores(d_k, d_p, q);
    __syncwarp();
    if (more) load_queries(q, p.q, p.head_dim, next, next_h);
    ptx::cp_async_commit();
    slice.multiply_scores(d_v, s, d_o);
    __syncwarp();
    if (more) load_queries(d_o, g.d_o, p.head_dim_v, next, next_h);
    ptx::cp_async_commit();
  }
  slice.store(g.d_k, b, h_kv, sequence.kv_begin, j0, sequence.kv_rows, p.head_dim, d_k, p.scale);
  slice.store(g.d_v, b, h_kv, sequence.kv_begin, j0, sequence.kv_rows, p.head_dim_v, d_v,
              p.keep_scale);
}

template <typename ConfigOf>
__global__ void __launch_bounds__(F32BackwardSlice<ConfigOf::value>::kThreads, 1)
    f32_d_q_slices(const __grid_constant__ Parameters p, const __grid_constant__ Gradients g) {
  constexpr F32BackwardConfig C = ConfigOf::value;
  using S = F32BackwardSlice<C>;
  extern __shared__ __align__(128) std::byte shared[];
  TileIndex tile;
  if (!locate_block(p, C.outer, tile)) return;
  const int b = uniform(tile.b), h = uniform(tile.h), i0 = uniform(tile.begin);
  const int h_kv = uniform(h / p.group);
  const Sequence sequence = uniform(sequence_of(p, b));
  const Range queries{i0, min(i0 + C.outer, sequence.q_len)};
  Range keys, whole;
  if (!queries.empty()) {
    keys = uniform(visible_keys(p, sequence, queries.begin, queries.end));
    whole = uniform(common_keys(p, sequence, queries.begin, queries.end));
  }

  const S slice;
  const std::uint32_t base = ptx::shared_address(shared);
  const typename S::Outer q{base}, d_o{base + S::Outer::kBytes};
  const typename S::Inner k{base + S::kInnerAt}, v{k.base + S::Inner::kBytes};
  const auto load_queries = [&](const typename S::Outer& to, const Rows& rows, int columns) {
    slice.load(to, row_of<const float>(rows, b, h, sequence.q_begin), rows, i0, sequence.q_len,
               columns, ~0u);
  };
  const auto load_keys = [&](const typename S::Inner& to, const Rows& rows, int columns,
                             const Visit& visit) {
    slice.load(to, row_of<const float>(rows, b, h_kv, sequence.kv_begin), rows, visit.begin,
               sequence.kv_len, columns, visit.listed);
  };

  RowGradientScalars rows[S::kRowTiles][2];
#pragma unroll
  for (int r = 0; r < S::kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = i0 + 16 * r + 8 * half + lane_id() / 4;
      rows[r][half] = row_scalars(p, g, sequence, b, h, i).hidden();
    }
  }
  const ScoreTile<float, S::kRowTiles, S::kScoreTiles, C.warps> rules(p, sequence, b, h, i0);

  typename S::Accumulator d_q = {};
  BlockWalk<Side::queries, C.inner> walk(p, b, h, queries, keys);
  Visit next;
  bool more = walk.next(next);
  if (more) {
    load_queries(d_o, g.d_o, p.head_dim_v);
    load_keys(v, p.v, p.head_dim_v, next);
    ptx::cp_async_commit();
    load_queries(q, p.q, p.head_dim);
    load_keys(k, p.k, p.head_dim, next);
    ptx::cp_async_commit();
  }
  while (more) {
    const Visit now = uniform(next);
    typename S::Scores s, d_p;
    S::template arrive<1>();
    slice.multiply_rows(d_p, d_o, v);
    more = walk.next(next);
    __syncwarp();
    if (more) load_keys(v, p.v, p.head_dim_v, next);
    ptx::cp_async_commit();
    S::template arrive<1>();
    slice.multiply_rows(s, q, k);
    slice.add_parts(s, d_p, base + S::kPartsAt);
    const bool positions = now.begin < whole.begin || now.begin + C.inner > whole.end;
    differentiate<C.extras>(s, d_p, rules, p, rows, now.begin, positions, now.full != 0);
    slice.multiply_scores(d_q, d_p, k);
    __syncwarp();
    if (more) load_keys(k, p.k, p.head_dim, next);
    ptx::cp_async_commit();
  }
  slice.store(g.d_q, b, h, sequence.q_begin, i0, sequence.q_rows, p.head_dim, d_q, p.scale);
}

}  // namespace tessera::cuda::sm80
