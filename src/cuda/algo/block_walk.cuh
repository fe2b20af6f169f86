// Which tiles along one axis a tile along the other has to visit, with and without a block mask.
#pragma once

#include "cuda/algo/sequence.cuh"

namespace tessera::cuda {

/// A tile to visit. `listed` has a bit for each 16 rows of it, counted from `begin`: set if a block
/// of the mask covers them. The others hold nothing that may be read.
struct Visit {
  int begin = 0;
  unsigned listed = ~0u;
  bool full = true;  ///< The block mask leaves every element.
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
/// together, each on its own: with a block mask, lane l follows line l of those that the outer tile
/// overlaps (at most 32, since lines have at least 16 rows and tiles at most 256).
template <Side kOuter, int kInnerTile>
class BlockWalk {
 public:
  static_assert(kInnerTile % kGranule == 0 && kInnerTile / kGranule <= 32);

  __device__ BlockWalk(const Parameters& p, int b, int h, Range outer, Range range)
      : p_(p), range_(range), at_(range.begin / kInnerTile * kInnerTile) {
    if (p.block_mask.row_offsets == nullptr || range.empty()) return;
    lines_ = mask_lines<kOuter>(p, b, h);
    const int line = outer.begin / lines_.line_size + static_cast<int>(threadIdx.x % kWarpSize);
    follows_ = line * lines_.line_size < outer.end && line < lines_.lines;
    if (follows_) {
      entry_ = bounded(lines_.offsets[line]);
      end_ = bounded(lines_.offsets[line + 1]);
    }
  }

  /// The next tile; false at the end.
  __device__ bool next(Visit& visit) {
    if (at_ >= range_.end) return false;
    if (p_.block_mask.row_offsets == nullptr) {
      visit.begin = at_;
      at_ += kInnerTile;
      return true;
    }
    const int size = lines_.block_size;
    while (entry_ < end_ && (block(entry_) + 1) * size <= at_) ++entry_;
    int first = entry_ < end_ ? max(at_, block(entry_) * size) : kUnbounded;
    first = __reduce_min_sync(~0u, first) / kInnerTile * kInnerTile;
    if (first >= range_.end) return false;
    visit.begin = first;
    const int last = min(first + kInnerTile, range_.end);
    unsigned listed = 0;
    int uncovered = first;  // rows before it are covered by full blocks of this lane's line
    for (std::int64_t e = entry_; e < end_; ++e) {
      const int begin = block(e) * size;
      if (begin >= last) break;
      if (begin + size <= first) continue;
      const int low = (max(begin, first) - first) / kGranule;
      const int high = (min(begin + size, first + kInnerTile) - first) / kGranule;
      listed |= (high >= 32 ? ~0u : (1u << high) - 1) & ~((1u << low) - 1);
      if (begin <= uncovered && full(e)) uncovered = begin + size;
    }
    visit.full = __all_sync(~0u, !follows_ || uncovered >= last);
    visit.listed = __reduce_or_sync(~0u, listed);
    at_ = first + kInnerTile;
    return true;
  }

 private:
  __device__ std::int64_t bounded(std::int64_t entry) const {
    return min(max(entry, static_cast<std::int64_t>(0)), p_.block_mask.entries);
  }
  __device__ int block(std::int64_t entry) const {
    return clamp_to(lines_.blocks[entry], 0, lines_.lines_blocks);
  }
  __device__ bool full(std::int64_t entry) const {
    if (lines_.entries != nullptr) entry = bounded(lines_.entries[entry]);
    return p_.block_mask.bits_index[entry] < 0;
  }

  const Parameters& p_;
  Range range_;
  int at_;
  MaskLines lines_{};
  bool follows_ = false;
  std::int64_t entry_ = 0, end_ = 0;
};

/// Whether the block mask has element (i, j).
__device__ inline bool block_mask_allows(const Parameters& p, int b, int h, int i, int j) {
  const BlockMaskView& mask = p.block_mask;
  const MaskLines rows = mask_lines<Side::queries>(p, b, h);
  const int row = i / rows.line_size;
  const int column = j / rows.block_size;
  std::int64_t low = min(max(rows.offsets[row], static_cast<std::int64_t>(0)), mask.entries);
  std::int64_t high = min(max(rows.offsets[row + 1], low), mask.entries);
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (rows.blocks[middle] < column) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low >= mask.entries || low >= rows.offsets[row + 1] || rows.blocks[low] != column) {
    return false;
  }
  const std::int64_t partial = mask.bits_index[low];
  if (partial < 0) return true;
  if (partial >= mask.partial_blocks) return false;
  const int in_row = i - row * rows.line_size;
  const int in_column = j - column * rows.block_size;
  const int words = (rows.block_size + 31) / 32;
  const std::uint32_t word =
      mask.bits[(partial * rows.line_size + in_row) * words + in_column / 32];
  return (word >> (in_column % 32) & 1u) != 0;
}

}  // namespace tessera::cuda
