// Which tiles along one axis a tile along the other has to visit, with and without a block mask.
#pragma once

#include "cuda/algo/sequence.cuh"

namespace tessera::cuda {

/// A tile to visit. `listed` has a bit for each 16 rows of it, counted from `begin`: set if a block
/// of the mask covers them. The others hold nothing that may be read.
struct Visit {
  int begin = 0;
  unsigned listed = ~0u;
  int full = 1;  ///< Not 0: the block mask leaves every element. (An int fits a uniform register.)
};

inline constexpr int kGranule = 16;  ///< Mask block sizes are multiples of it.

/// CSR or its transpose of one (sequence, head) of a block mask, as lines of entries.
struct MaskLines {
  const std::int64_t* offsets;
  const std::int32_t* blocks;
  const std::int64_t* entries;  ///< Entry of the CSR; null where that is the index itself.
  int line_size, block_size;    ///< Rows of a line's tile side and of its entries' side.
  int lines, lines_blocks;
};

template <Side kOuter>
__device__ inline MaskLines mask_lines(const Parameters& p, int b, int h) {
  const BlockMaskView& mask = p.block_mask;
  const std::int64_t plane = (mask.batch == 1 ? 0 : b) * mask.heads + (mask.heads == 1 ? 0 : h);
  if constexpr (kOuter == Side::queries) {
    return {mask.row_offsets + plane * mask.q_blocks,
            mask.columns,
            nullptr,
            static_cast<int>(mask.block_q),
            static_cast<int>(mask.block_kv),
            static_cast<int>(mask.q_blocks),
            static_cast<int>(mask.kv_blocks)};
  } else {
    return {mask.transposed_offsets + plane * mask.kv_blocks,
            mask.transposed_rows,
            mask.transposed_entries,
            static_cast<int>(mask.block_kv),
            static_cast<int>(mask.block_q),
            static_cast<int>(mask.kv_blocks),
            static_cast<int>(mask.q_blocks)};
  }
}

/// Goes through the tiles of `kInnerTile` rows along the inner axis that the outer tile
/// [outer.begin, outer.end) has to visit, in ascending order, within `range`. Whole warps call it
/// together, each on its own, and have the entries of the mask shared out over their lanes:
///   - the outer tile lies in one line, whose blocks are whole tiles (most masks): lane l has the
///     l-th of 32 entries, so that memory is asked once for 32 of them;
///   - else: lane l follows line l of those that the outer tile overlaps (at most 32, since lines
///     have at least 16 rows and tiles at most 256).
template <Side kOuter, int kInnerTile>
class BlockWalk {
 public:
  static_assert(kInnerTile % kGranule == 0 && kInnerTile / kGranule <= 32);

  __device__ BlockWalk(const Parameters& p, int b, int h, Range outer, Range range)
      : p_(&p),
        b_(b),
        h_(h),
        outer_begin_(outer.begin),
        at_(range.begin / kInnerTile * kInnerTile),
        range_end_(range.end) {
    if (p.block_mask.row_offsets == nullptr || range.empty()) return;
    const MaskLines lines = mask_lines<kOuter>(p, b, h);
    const int lane = static_cast<int>(threadIdx.x % kWarpSize);
    const int first = outer.begin / lines.line_size;
    const bool one_line =
        (outer.end - 1) / lines.line_size == first && lines.block_size % kInnerTile == 0;
    const int line = first + (one_line ? 0 : lane);
    if (line * lines.line_size < outer.end && line < lines.lines) {
      const std::int64_t entry = bounded(lines.offsets[line]);
      left_ = static_cast<int>(max(bounded(lines.offsets[line + 1]), entry) - entry);
    }
    if (one_line) {
      skipped_ = lane;
      left_ -= lane;
      read_entry(lines);
    }
  }

  /// The next tile; false at the end.
  __device__ bool next(Visit& visit) {
    if (at_ >= range_end_) return false;
    if (p_->block_mask.row_offsets == nullptr) {
      visit.begin = at_;
    } else if (!(__any_sync(~0u, own_ == kLines) ? next_of_lines(visit) : next_in_line(visit))) {
      return false;
    }
    at_ = visit.begin + kInnerTile;
    return true;
  }

  /// How many tiles are left. Ends the walk.
  __device__ int count() {
    int tiles = 0;
    if (own_ == kLines) {
      for (Visit visit; next(visit);) ++tiles;
      return tiles;
    }
    const MaskLines lines = mask_lines<kOuter>(*p_, b_, h_);
    do {
      const int begin = max(at_, (own_ >> 1) * lines.block_size);
      const int end = min(range_end_, ((own_ >> 1) + 1) * lines.block_size);
      if (begin < end) tiles += (end - begin + kInnerTile - 1) / kInnerTile;
    } while (read_on(lines));
    return __reduce_add_sync(~0u, tiles);
  }

 private:
  /// In one line.
  __device__ bool next_in_line(Visit& visit) {
    const MaskLines lines = mask_lines<kOuter>(*p_, b_, h_);
    do {
      const unsigned ahead = __ballot_sync(~0u, ((own_ >> 1) + 1) * lines.block_size > at_);
      if (ahead != 0) {
        const int entry = __shfl_sync(~0u, own_, __ffs(ahead) - 1);
        visit.begin = max(at_, (entry >> 1) * lines.block_size);
        visit.full = entry & 1;
        return visit.begin < range_end_;
      }
    } while (read_on(lines));
    return false;
  }

  /// The next 32 entries of the line; false if there are none.
  __device__ bool read_on(const MaskLines& lines) {
    if (__all_sync(~0u, left_ <= kWarpSize)) return false;
    skipped_ += kWarpSize;
    left_ -= kWarpSize;
    read_entry(lines);
    return true;
  }

  __device__ void read_entry(const MaskLines& lines) {
    own_ = kNoEntry;
    if (left_ <= 0) return;
    const std::int64_t entry = entry_at(lines, 0);
    own_ = block(lines, entry) << 1 | (full(lines, entry) ? 1 : 0);
  }

  __device__ bool next_of_lines(Visit& visit) {
    const MaskLines lines = mask_lines<kOuter>(*p_, b_, h_);
    const int lane = static_cast<int>(threadIdx.x % kWarpSize);
    const int size = lines.block_size;
    const std::int64_t begin_of_line = left_ > 0 ? entry_at(lines, lane) - skipped_ : 0;
    for (; left_ > 0 && (block(lines, begin_of_line + skipped_) + 1) * size <= at_; --left_) {
      ++skipped_;
    }
    int first = left_ > 0 ? max(at_, block(lines, begin_of_line + skipped_) * size) : kUnbounded;
    first = __reduce_min_sync(~0u, first);
    if (first >= range_end_) return false;
    first = first / kInnerTile * kInnerTile;
    visit.begin = first;
    const int last = min(first + kInnerTile, range_end_);
    unsigned listed = 0;
    int uncovered = first;  // rows before it are covered by full blocks of this lane's line
    for (int ahead = 0; ahead < left_; ++ahead) {
      const std::int64_t e = begin_of_line + skipped_ + ahead;
      const int begin = block(lines, e) * size;
      if (begin >= last) break;
      if (begin + size <= first) continue;
      const int low = (max(begin, first) - first) / kGranule;
      const int high = (min(begin + size, first + kInnerTile) - first) / kGranule;
      listed |= (high >= 32 ? ~0u : (1u << high) - 1) & ~((1u << low) - 1);
      if (begin <= uncovered && full(lines, e)) uncovered = begin + size;
    }
    visit.full = __reduce_min_sync(~0u, left_ < 0 || uncovered >= last ? 1 : 0);
    visit.listed = __reduce_or_sync(~0u, listed);
    return true;
  }

  /// The lane's entry of the line that is `line` lines behind the outer tile's first.
  __device__ std::int64_t entry_at(const MaskLines& lines, int line) const {
    return bounded(lines.offsets[outer_begin_ / lines.line_size + line]) + skipped_;
  }
  __device__ std::int64_t bounded(std::int64_t entry) const {
    return min(max(entry, static_cast<std::int64_t>(0)), p_->block_mask.entries);
  }
  __device__ static int block(const MaskLines& lines, std::int64_t entry) {
    return clamp_to(lines.blocks[entry], 0, lines.lines_blocks);
  }
  __device__ bool full(const MaskLines& lines, std::int64_t entry) const {
    if (p_->block_mask.partial_blocks == 0) return true;
    if (lines.entries != nullptr) entry = lines.entries[entry];
    if (entry < 0 || entry >= p_->block_mask.entries) return false;
    return p_->block_mask.bits_index[entry] < 0;
  }

  static constexpr int kNoEntry = -2;  ///< Of block −1, which ends in front of everything.
  static constexpr int kLines = -4;    ///< Lanes have lines, not entries of one.

  const Parameters* p_;
  int b_, h_, outer_begin_;
  int at_, range_end_;
  /// One line: entries of it before the lane's, which is `own_`: block << 1 | full. Else entries of
  /// the lane's line before the first that ends behind at_.
  int skipped_ = 0;
  int left_ = -1;  ///< Entries from there to the end of the line; −1: no line.
  int own_ = kLines;
};

/// What the block mask says of one granule: 16 × 16 elements whose first indices are multiples of
/// 16. All of them lie in one block, and a row of them in one word of its bits.
struct MaskGranule {
  bool listed = false;
  const std::uint32_t* bits = nullptr;  ///< Word of row 0 with this granule's bits; null: all set.
  int words = 0;                        ///< From one row to the next.
  int shift = 0;

  /// Element (i, j) of the sequence, within the granule.
  __device__ __forceinline__ bool allows(int i, int j) const {
    if (!listed || bits == nullptr) return listed;
    return (bits[i % kGranule * words] >> (shift + j % kGranule) & 1u) != 0;
  }
};

/// The granule that has element (i, j).
__device__ inline MaskGranule mask_granule(const Parameters& p, int b, int h, int i, int j) {
  const BlockMaskView& mask = p.block_mask;
  const MaskLines rows = mask_lines<Side::queries>(p, b, h);
  const int row = i / rows.line_size;
  const int column = j / rows.block_size;
  std::int64_t low = min(max(rows.offsets[row], static_cast<std::int64_t>(0)), mask.entries);
  std::int64_t high = min(max(rows.offsets[row + 1], low), mask.entries);
  const std::int64_t end = high;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (rows.blocks[middle] < column) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low >= end || rows.blocks[low] != column) return {};
  const std::int64_t partial = mask.bits_index[low];
  if (partial < 0) return {true};
  if (partial >= mask.partial_blocks) return {};
  const int in_row = (i - row * rows.line_size) / kGranule * kGranule;
  const int in_column = (j - column * rows.block_size) / kGranule * kGranule;
  const int words = (rows.block_size + 31) / 32;
  return {true, mask.bits + (partial * rows.line_size + in_row) * words + in_column / 32, words,
          in_column % 32};
}

/// Whether the block mask has element (i, j).
__device__ inline bool block_mask_allows(const Parameters& p, int b, int h, int i, int j) {
  return mask_granule(p, b, h, i, j).allows(i, j);
}

/// A bit for each granule of rows of [outer.begin, outer.end), counted from outer.begin: set if any
/// block of the mask covers it for (sequence, head). All set without a block mask. Whole warps call
/// it together.
template <Side kOuter>
__device__ inline unsigned listed_granules(const Parameters& p, int b, int h, Range outer) {
  if (p.block_mask.row_offsets == nullptr) return ~0u;
  const MaskLines lines = mask_lines<kOuter>(p, b, h);
  const int at = outer.begin + static_cast<int>(threadIdx.x % kWarpSize) * kGranule;
  const int line = at / lines.line_size;
  const bool listed =
      at < outer.end && line < lines.lines && lines.offsets[line] < lines.offsets[line + 1];
  return __ballot_sync(~0u, listed);
}

/// The same for keys of a key head: those that any query head of its group lists.
__device__ inline unsigned listed_keys(const Parameters& p, int b, int h_kv, Range keys) {
  const int heads = p.block_mask.heads > 1 ? p.group : 1;  // others list the same
  unsigned listed = 0;
  for (int h = h_kv * p.group; h < h_kv * p.group + heads; ++h) {
    listed |= listed_granules<Side::keys>(p, b, h, keys);
  }
  return listed;
}

}  // namespace tessera::cuda
