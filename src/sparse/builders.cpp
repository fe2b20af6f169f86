// Builders that start from data: blocks, elements, a predicate, or the CSR arrays.
#include <algorithm>
#include <array>
#include <bit>

#include "sparse/assembler.hpp"

namespace tessera {
namespace sparse {
namespace {

/// Whether a span has batch * heads * rows * columns elements; `formula` says so in words.
Status check_size(std::string_view name, std::size_t size, std::string_view formula,
                  const std::array<std::int64_t, 4>& factors) {
  const auto [batch, heads, rows, columns] = factors;
  const std::optional<std::int64_t> expected = product({batch, heads, rows, columns});
  if (!expected) {
    return invalid("{}: {} * {} * {} * {}, expected a product below 2^63", formula, batch, heads,
                   rows, columns);
  }
  if (size == static_cast<std::uint64_t>(*expected)) return {};
  return invalid("{}: {} elements, expected {} = {} * {} * {} * {} = {}", name, size, formula,
                 batch, heads, rows, columns, *expected);
}

/// Reads every element of every block once and keeps only blocks with something in them.
/// attend_row(b, h, i) gives a callable that says whether row i attends to key j.
template <typename AttendRow>
BlockMask classify(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                   AttendRow attend_row) {
  BlockMaskAssembler assembler(shape, batch, heads);
  const std::int64_t words = words_per_row(shape);
  std::vector<std::uint32_t> tile(tile_words(shape));
  const std::int64_t rows = batch * heads * shape.q_blocks();
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t plane = row / shape.q_blocks();
    const Extent queries = query_rows(shape, row % shape.q_blocks());
    for (std::int64_t c = 0; c < shape.kv_blocks(); ++c) {
      const Extent block_keys = keys(shape, c);
      std::fill(tile.begin(), tile.end(), 0);
      std::int64_t attended = 0;
      for (std::int64_t i = queries.begin; i < queries.end; ++i) {
        const auto attend = attend_row(plane / heads, plane % heads, i);
        std::uint32_t* bits = tile.data() + (i - queries.begin) * words;
        for (std::int64_t j = block_keys.begin; j < block_keys.end; j += 32) {
          const std::int64_t count = std::min<std::int64_t>(32, block_keys.end - j);
          std::uint32_t word = 0;
          for (std::int64_t k = 0; k < count; ++k) {
            word |= static_cast<std::uint32_t>(attend(j + k)) << k;
          }
          bits[(j - block_keys.begin) / 32] = word;
          attended += std::popcount(word);
        }
      }
      if (attended == queries.size() * block_keys.size()) {
        assembler.add_full(c);
      } else if (attended > 0) {
        assembler.add_partial(c, assembler.add_tile(tile));
      }
    }
    assembler.end_row();
  }
  return std::move(assembler).finish();
}

/// Partial blocks must not name elements that do not exist.
Status check_bits(const BlockMaskView& mask, const BlockShape& shape) {
  const std::int64_t words = words_per_row(shape);
  for (std::int64_t row = 0; row < mask.batch * mask.heads * mask.q_blocks; ++row) {
    const std::int64_t rows = query_rows(shape, row % mask.q_blocks).size();
    for (std::int64_t e = mask.row_offsets[row]; e < mask.row_offsets[row + 1]; ++e) {
      if (mask.bits_index[e] < 0) continue;
      const std::int64_t columns = keys(shape, mask.columns[e]).size();
      if (rows == shape.block_q && columns == words * 32) continue;
      const std::uint32_t* tile = mask.bits + mask.bits_index[e] * tile_words(shape);
      for (std::int64_t i = 0; i < shape.block_q; ++i) {
        const std::int64_t existing = i < rows ? columns : 0;
        for (std::int64_t w = existing / 32; w < words; ++w) {
          const std::uint32_t beyond = w == existing / 32 ? ~0u << existing % 32 : ~0u;
          if (tile[i * words + w] & beyond) {
            return invalid("bits[{}]: {:#010x}, expected no bit beyond entry {}'s {} x {} elements",
                           tile + i * words + w - mask.bits, tile[i * words + w], e, rows, columns);
          }
        }
      }
    }
  }
  return {};
}

}  // namespace
}  // namespace sparse

Result<BlockMask> BlockMask::from_blocks(const BlockShape& shape, std::int64_t batch,
                                         std::int64_t heads, std::span<const std::uint8_t> blocks) {
  return sparse::build_checked(shape, batch, heads, [&]() -> Result<BlockMask> {
    if (Status status =
            sparse::check_size("blocks", blocks.size(), "batch * heads * q_blocks * kv_blocks",
                               {batch, heads, shape.q_blocks(), shape.kv_blocks()});
        !status.ok()) {
      return status;
    }
    const auto listed =
        std::count_if(blocks.begin(), blocks.end(), [](std::uint8_t block) { return block != 0; });
    BlockMaskAssembler assembler(shape, batch, heads, listed);
    const std::int64_t rows = batch * heads * shape.q_blocks();
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::uint8_t* visit = blocks.data() + row * shape.kv_blocks();
      for (std::int64_t c = 0; c < shape.kv_blocks(); ++c) {
        if (visit[c]) assembler.add_full(c);
      }
      assembler.end_row();
    }
    return std::move(assembler).finish();
  });
}

Result<BlockMask> BlockMask::from_elements(const BlockShape& shape, std::int64_t batch,
                                           std::int64_t heads,
                                           std::span<const std::uint8_t> elements) {
  return sparse::build_checked(shape, batch, heads, [&]() -> Result<BlockMask> {
    if (Status status =
            sparse::check_size("elements", elements.size(), "batch * heads * seq_q * seq_kv",
                               {batch, heads, shape.seq_q, shape.seq_kv});
        !status.ok()) {
      return status;
    }
    return sparse::classify(
        shape, batch, heads, [&](std::int64_t b, std::int64_t h, std::int64_t i) {
          const std::uint8_t* row =
              elements.data() + ((b * heads + h) * shape.seq_q + i) * shape.seq_kv;
          return [row](std::int64_t j) { return row[j] != 0; };
        });
  });
}

Result<BlockMask> BlockMask::from_predicate(
    const BlockShape& shape, std::int64_t batch, std::int64_t heads,
    const std::function<bool(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>& attend) {
  return sparse::build_checked(shape, batch, heads, [&]() -> Result<BlockMask> {
    if (!attend) return sparse::invalid("attend: empty, expected a callable (b, h, i, j)");
    return sparse::classify(shape, batch, heads,
                            [&](std::int64_t b, std::int64_t h, std::int64_t i) {
                              return [&, b, h, i](std::int64_t j) { return attend(b, h, i, j); };
                            });
  });
}

Result<BlockMask> BlockMask::from_csr(const BlockShape& shape, std::int64_t batch,
                                      std::int64_t heads, std::span<const std::int64_t> row_offsets,
                                      std::span<const std::int32_t> columns,
                                      std::span<const std::int32_t> bits_index,
                                      std::span<const std::uint32_t> bits) {
  return sparse::build_checked(shape, batch, heads, [&]() -> Result<BlockMask> {
    const std::int64_t rows = batch * heads * shape.q_blocks();
    if (row_offsets.size() != static_cast<std::uint64_t>(rows) + 1) {
      return sparse::invalid("row_offsets: {} elements, expected batch * heads * q_blocks + 1 = {}",
                             row_offsets.size(), rows + 1);
    }
    if (!bits_index.empty() && bits_index.size() != columns.size()) {
      return sparse::invalid("bits_index: {} elements, expected none or one per column, {}",
                             bits_index.size(), columns.size());
    }
    const std::uint64_t words = sparse::tile_words(shape);
    if (bits.size() % words != 0 || bits.size() / words > sparse::kMaxExtent) {
      return sparse::invalid(
          "bits: {} words, expected a multiple of block_q * words_per_row = {}, below 2^31 "
          "times",
          bits.size(), words);
    }
    if (bits_index.empty() && !bits.empty()) {
      return sparse::invalid("bits: {} words, expected none, as bits_index is empty", bits.size());
    }
    BlockMask mask;
    mask.shape_ = shape;
    mask.batch_ = batch;
    mask.heads_ = heads;
    mask.row_offsets_.assign(row_offsets.begin(), row_offsets.end());
    mask.columns_.assign(columns.begin(), columns.end());
    mask.bits_index_.assign(bits_index.begin(), bits_index.end());
    mask.bits_index_.resize(columns.size(), -1);
    mask.bits_.assign(bits.begin(), bits.end());
    if (Status status = sparse::check_rows(mask.view(), ""); !status.ok()) return status;
    if (Status status = sparse::check_bits(mask.view(), shape); !status.ok()) return status;
    BlockMaskAssembler::transpose(mask);
    return mask;
  });
}

}  // namespace tessera
