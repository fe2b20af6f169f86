// Builders of fixed patterns: their work follows the blocks they list, never the elements.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <map>

#include "core/philox.hpp"
#include "sparse/assembler.hpp"

namespace tessera {
namespace sparse {
namespace {

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

/// Key blocks begin, begin + step, … below end.
struct Blocks {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t step = 1;
  std::int64_t count() const { return end <= begin ? 0 : (end - begin + step - 1) / step; }
};

/// A mask of full blocks, shared by batch and heads; ranges_of(query_block) gives two ranges of key
/// blocks, the first wholly before the second.
template <typename RangesOf>
BlockMask from_ranges(const BlockShape& shape, RangesOf ranges_of) {
  std::int64_t entries = 0;
  for (std::int64_t r = 0; r < shape.q_blocks(); ++r) {
    for (const Blocks& blocks : ranges_of(r)) entries += blocks.count();
  }
  BlockMaskAssembler assembler(shape, 1, 1, entries);
  for (std::int64_t r = 0; r < shape.q_blocks(); ++r) {
    for (const Blocks& blocks : ranges_of(r)) {
      for (std::int64_t c = blocks.begin; c < blocks.end; c += blocks.step) assembler.add_full(c);
    }
    assembler.end_row();
  }
  return std::move(assembler).finish();
}

/// The key blocks [first, last] where a query block's rows stand, bottom-right aligned: one block
/// on a square grid, more where the grids differ. Queries before the first key have negative ones.
struct Diagonal {
  std::int64_t first = 0;
  std::int64_t last = 0;
};

Diagonal diagonal_of(const BlockShape& shape, std::int64_t query_block) {
  const std::int64_t shift = shape.seq_kv - shape.seq_q;
  const Extent rows = query_rows(shape, query_block);
  return {floor_div(rows.begin + shift, shape.block_kv),
          floor_div(rows.end - 1 + shift, shape.block_kv)};
}

/// Causal blocks of one row of blocks: [0, full) are full, [full, listed) partial.
struct CausalRow {
  std::int64_t full = 0;
  std::int64_t listed = 0;
};

CausalRow causal_row(const BlockShape& shape, std::int64_t shift, std::int64_t query_block) {
  const Extent rows = query_rows(shape, query_block);
  // How many keys the block's first and last query see.
  const std::int64_t least = std::clamp<std::int64_t>(rows.begin + shift + 1, 0, shape.seq_kv);
  const std::int64_t most = std::clamp<std::int64_t>(rows.end + shift, 0, shape.seq_kv);
  return {least == shape.seq_kv ? shape.kv_blocks() : least / shape.block_kv,
          (most + shape.block_kv - 1) / shape.block_kv};
}

/// Bits of a partial causal block: its row i sees the block's first i + 1 + offset keys.
void fill_causal_tile(const BlockShape& shape, std::int64_t offset, std::int64_t rows,
                      std::int64_t columns, std::span<std::uint32_t> tile) {
  std::fill(tile.begin(), tile.end(), 0);
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t seen = std::clamp<std::int64_t>(i + 1 + offset, 0, columns);
    std::uint32_t* bits = tile.data() + i * words_per_row(shape);
    std::fill_n(bits, seen / 32, ~0u);
    if (seen % 32 != 0) bits[seen / 32] = (1u << seen % 32) - 1;
  }
}

BlockMask build_causal(const BlockShape& shape, std::int64_t shift) {
  std::int64_t entries = 0;
  for (std::int64_t r = 0; r < shape.q_blocks(); ++r) entries += causal_row(shape, shift, r).listed;
  BlockMaskAssembler assembler(shape, 1, 1, entries);
  // Blocks that the diagonal crosses in the same way share their bits, so their number depends on
  // the block sizes and not on the sequence: with equal ones it is one, and the ragged edge.
  std::map<std::array<std::int64_t, 3>, std::int32_t> tiles;
  std::vector<std::uint32_t> tile;
  for (std::int64_t r = 0; r < shape.q_blocks(); ++r) {
    const Extent rows = query_rows(shape, r);
    const CausalRow row = causal_row(shape, shift, r);
    for (std::int64_t c = 0; c < row.full; ++c) assembler.add_full(c);
    for (std::int64_t c = row.full; c < row.listed; ++c) {
      const Extent columns = keys(shape, c);
      const std::int64_t offset = rows.begin + shift - columns.begin;
      const std::array crossing{offset, rows.size(), columns.size()};
      auto found = tiles.find(crossing);
      if (found == tiles.end()) {
        tile.resize(tile_words(shape));
        fill_causal_tile(shape, offset, rows.size(), columns.size(), tile);
        found = tiles.emplace(crossing, assembler.add_tile(tile)).first;
      }
      assembler.add_partial(c, found->second);
    }
    assembler.end_row();
  }
  return std::move(assembler).finish();
}

/// The butterfly on a grid that need not be square: blocks of both axes are numbered on the longer
/// one, where a block of the shorter axis stands for its whole share of indices, so that the
/// pattern is stretched and no row or column stays empty.
class Butterfly {
 public:
  explicit Butterfly(const BlockShape& shape)
      : q_blocks_(shape.q_blocks()),
        kv_blocks_(shape.kv_blocks()),
        grid_(std::max(q_blocks_, kv_blocks_)) {}

  void row(std::int64_t query_block, std::vector<std::int64_t>& columns) const {
    columns.clear();
    if (kv_blocks_ == 0) return;
    const Extent share{query_block * grid_ / q_blocks_, (query_block + 1) * grid_ / q_blocks_};
    for (std::int64_t x = share.begin; x < share.end; ++x) {
      columns.push_back(key_block_of(x));
      for (std::int64_t bit = 1; bit < grid_; bit *= 2) {
        const std::int64_t y = x ^ bit;
        // What lies within the share is listed anyway; leaving it out keeps `columns` near the
        // row's own length when one query block stands for many key blocks.
        if (y < grid_ && (y < share.begin || y >= share.end)) columns.push_back(key_block_of(y));
      }
    }
    std::sort(columns.begin(), columns.end());
    columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
  }

 private:
  /// The c with floor(c · grid / kv_blocks) ≤ x < floor((c + 1) · grid / kv_blocks).
  std::int64_t key_block_of(std::int64_t x) const { return ((x + 1) * kv_blocks_ - 1) / grid_; }

  std::int64_t q_blocks_;
  std::int64_t kv_blocks_;
  std::int64_t grid_;
};

/// Uniform integers for one row of blocks. Its counters name the row by (b, h, query block), so a
/// head's mask does not depend on how many heads there are.
class RowStream {
 public:
  RowStream(std::uint64_t seed, std::int64_t b, std::int64_t h, std::int64_t query_block)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        counter_{0, static_cast<std::uint32_t>(query_block), static_cast<std::uint32_t>(h),
                 static_cast<std::uint32_t>(b)} {}

  /// Uniform in [0, n), n > 0: a 32-bit word scaled to n, drawn again where some results would get
  /// one word more than others (Lemire, "Fast random integer generation in an interval", 2019).
  std::uint32_t below(std::uint32_t n) {
    const std::uint32_t surplus = -n % n;
    while (true) {
      const std::uint64_t scaled = static_cast<std::uint64_t>(next()) * n;
      if (static_cast<std::uint32_t>(scaled) >= surplus) {
        return static_cast<std::uint32_t>(scaled >> 32);
      }
    }
  }

 private:
  std::uint32_t next() {
    if (used_ == words_.size()) {
      words_ = philox4x32(counter_, key_);
      ++counter_[0];
      used_ = 0;
    }
    return words_[used_++];
  }

  PhiloxKey key_;
  PhiloxCounter counter_;
  PhiloxCounter words_{};
  std::size_t used_ = words_.size();
};

BlockMask build_random(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                       double density, std::uint64_t seed) {
  const std::int64_t kv_blocks = shape.kv_blocks();
  const std::int64_t rows = batch * heads * shape.q_blocks();
  const std::int64_t visits =
      std::clamp<std::int64_t>(std::llround(density * static_cast<double>(kv_blocks)),
                               std::min<std::int64_t>(kv_blocks, 1), kv_blocks);
  BlockMaskAssembler assembler(shape, batch, heads, rows * visits);
  std::vector<std::uint64_t> chosen((kv_blocks + 63) / 64, 0);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t plane = row / shape.q_blocks();
    RowStream stream(seed, plane / heads, plane % heads, row % shape.q_blocks());
    // Floyd's sampling: one draw per chosen block, every subset equally likely.
    for (std::int64_t last = kv_blocks - visits; last < kv_blocks; ++last) {
      const std::int64_t drawn = stream.below(static_cast<std::uint32_t>(last + 1));
      const bool taken = chosen[drawn / 64] >> drawn % 64 & 1;
      const std::int64_t c = taken ? last : drawn;
      chosen[c / 64] |= std::uint64_t{1} << c % 64;
    }
    for (std::size_t word = 0; word < chosen.size(); ++word) {
      for (std::uint64_t left = std::exchange(chosen[word], 0); left != 0; left &= left - 1) {
        assembler.add_full(static_cast<std::int64_t>(word) * 64 + std::countr_zero(left));
      }
    }
    assembler.end_row();
  }
  return std::move(assembler).finish();
}

}  // namespace
}  // namespace sparse

Result<BlockMask> BlockMask::causal(const BlockShape& shape, Alignment alignment) {
  return sparse::build_checked(shape, 1, 1, [&]() -> Result<BlockMask> {
    if (alignment != Alignment::bottom_right && alignment != Alignment::top_left) {
      return sparse::invalid("alignment: {}, expected bottom_right (0) or top_left (1)",
                             static_cast<int>(alignment));
    }
    return sparse::build_causal(
        shape, alignment == Alignment::bottom_right ? shape.seq_kv - shape.seq_q : 0);
  });
}

Result<BlockMask> BlockMask::butterfly(const BlockShape& shape) {
  return sparse::build_checked(shape, 1, 1, [&]() -> Result<BlockMask> {
    const sparse::Butterfly butterfly(shape);
    std::vector<std::int64_t> columns;
    std::int64_t entries = 0;
    for (std::int64_t r = 0; r < shape.q_blocks(); ++r) {
      butterfly.row(r, columns);
      entries += static_cast<std::int64_t>(columns.size());
    }
    BlockMaskAssembler assembler(shape, 1, 1, entries);
    for (std::int64_t r = 0; r < shape.q_blocks(); ++r) {
      butterfly.row(r, columns);
      for (const std::int64_t c : columns) assembler.add_full(c);
      assembler.end_row();
    }
    return std::move(assembler).finish();
  });
}

Result<BlockMask> BlockMask::local_global(const BlockShape& shape, std::int64_t local,
                                          std::int64_t global) {
  return sparse::build_checked(shape, 1, 1, [&]() -> Result<BlockMask> {
    if (local < 0) return sparse::invalid("local: {}, expected at least 0", local);
    if (global < 0) return sparse::invalid("global: {}, expected at least 0", global);
    const std::int64_t kv_blocks = shape.kv_blocks();
    const std::int64_t reach = std::min(local, sparse::kMaxExtent);
    return sparse::from_ranges(shape, [&](std::int64_t r) {
      const sparse::Diagonal diagonal = sparse::diagonal_of(shape, r);
      const std::int64_t head = r < global ? kv_blocks : std::min(global, kv_blocks);
      return std::array<sparse::Blocks, 2>{
          sparse::Blocks{0, head, 1},
          sparse::Blocks{std::max(head, diagonal.first - reach),
                         std::min(kv_blocks, diagonal.last + reach + 1), 1}};
    });
  });
}

Result<BlockMask> BlockMask::strided(const BlockShape& shape, std::int64_t local,
                                     std::int64_t stride) {
  return sparse::build_checked(shape, 1, 1, [&]() -> Result<BlockMask> {
    if (local < 1) return sparse::invalid("local: {}, expected at least 1", local);
    if (stride < 1) return sparse::invalid("stride: {}, expected at least 1", stride);
    const std::int64_t reach = std::min(local, sparse::kMaxExtent);
    const std::int64_t step = std::min(stride, sparse::kMaxExtent);
    return sparse::from_ranges(shape, [&](std::int64_t r) {
      const sparse::Diagonal diagonal = sparse::diagonal_of(shape, r);
      if (diagonal.last < 0) return std::array<sparse::Blocks, 2>{};
      const std::int64_t window = std::max<std::int64_t>(0, diagonal.first - reach + 1);
      return std::array<sparse::Blocks, 2>{sparse::Blocks{diagonal.last % step, window, step},
                                           sparse::Blocks{window, diagonal.last + 1, 1}};
    });
  });
}

Result<BlockMask> BlockMask::random(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                                    double density, std::uint64_t seed) {
  return sparse::build_checked(shape, batch, heads, [&]() -> Result<BlockMask> {
    if (!(density > 0 && density <= 1)) {
      return sparse::invalid("density: {}, expected above 0 and at most 1", density);
    }
    return sparse::build_random(shape, batch, heads, density, seed);
  });
}

}  // namespace tessera
