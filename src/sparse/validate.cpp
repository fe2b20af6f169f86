// What makes a block mask legal: builders' common arguments, and every array of a view.
#include <algorithm>

#include "sparse/assembler.hpp"

namespace tessera {
namespace sparse {

std::optional<std::int64_t> product(std::initializer_list<std::int64_t> factors) {
  if (std::find(factors.begin(), factors.end(), 0) != factors.end()) return 0;
  std::int64_t result = 1;
  for (const std::int64_t factor : factors) {
    if (__builtin_mul_overflow(result, factor, &result)) return std::nullopt;
  }
  return result;
}

namespace {

Status check_block_size(std::int64_t size, std::string_view prefix, std::string_view name) {
  if (size >= 16 && size <= kMaxExtent && size % 16 == 0) return {};
  return invalid("{}{}: {}, expected a positive multiple of 16 below 2^31", prefix, name, size);
}

Status check_length(std::int64_t length, std::string_view prefix, std::string_view name) {
  if (length >= 0 && length <= kMaxExtent) return {};
  return invalid("{}{}: {}, expected at least 0 and below 2^31", prefix, name, length);
}

Status check_count(std::int64_t count, std::string_view prefix, std::string_view name) {
  if (count >= 1 && count <= kMaxExtent) return {};
  return invalid("{}{}: {}, expected at least 1 and below 2^31", prefix, name, count);
}

/// Offsets of `lists` lists over `entries` entries: from 0, not decreasing, to the end.
Status check_offsets(const std::int64_t* offsets, std::int64_t lists, std::int64_t entries,
                     std::string_view prefix, std::string_view name) {
  if (offsets[0] != 0) return invalid("{}{}[0]: {}, expected 0", prefix, name, offsets[0]);
  for (std::int64_t i = 0; i < lists; ++i) {
    if (offsets[i + 1] < offsets[i]) {
      return invalid("{}{}[{}]: {}, expected at least the one before it, {}", prefix, name, i + 1,
                     offsets[i + 1], offsets[i]);
    }
  }
  if (offsets[lists] != entries) {
    return invalid("{}{}[{}]: {}, expected the number of entries, {}", prefix, name, lists,
                   offsets[lists], entries);
  }
  return {};
}

/// Column by column: rows in range and ascending, each with its own entry. As rows do not repeat
/// within a column and there are as many pairs as entries, no entry can be missing.
Status check_transpose(const BlockMaskView& mask) {
  const std::int64_t columns = mask.batch * mask.heads * mask.kv_blocks;
  if (Status status = check_offsets(mask.transposed_offsets, columns, mask.entries, "block_mask.",
                                    "transposed_offsets");
      !status.ok()) {
    return status;
  }
  for (std::int64_t column = 0; column < columns; ++column) {
    const std::int64_t first_row = column / mask.kv_blocks * mask.q_blocks;
    const std::int64_t key_block = column % mask.kv_blocks;
    std::int64_t previous = -1;
    for (std::int64_t t = mask.transposed_offsets[column]; t < mask.transposed_offsets[column + 1];
         ++t) {
      const std::int64_t row = mask.transposed_rows[t];
      const std::int64_t entry = mask.transposed_entries[t];
      if (row <= previous || row >= mask.q_blocks) {
        return invalid(
            "block_mask.transposed_rows[{}]: {}, expected above {} and below q_blocks = {}", t, row,
            previous, mask.q_blocks);
      }
      previous = row;
      if (entry < mask.row_offsets[first_row + row] ||
          entry >= mask.row_offsets[first_row + row + 1] || mask.columns[entry] != key_block) {
        return invalid(
            "block_mask.transposed_entries[{}]: {}, expected the entry of query block {} and key "
            "block {}",
            t, entry, row, key_block);
      }
    }
  }
  return {};
}

Status check_pointers(const BlockMaskView& mask) {
  const bool listed = mask.entries > 0;
  const struct {
    const void* pointer;
    const char* name;
    bool needed;
  } arrays[] = {
      {mask.row_offsets, "row_offsets", true},
      {mask.columns, "columns", listed},
      {mask.bits_index, "bits_index", listed},
      {mask.transposed_offsets, "transposed_offsets", true},
      {mask.transposed_rows, "transposed_rows", listed},
      {mask.transposed_entries, "transposed_entries", listed},
      {mask.bits, "bits", mask.partial_blocks > 0},
  };
  for (const auto& array : arrays) {
    if (array.needed && array.pointer == nullptr) {
      return invalid("block_mask.{}: null, expected an array ({} entries, {} partial blocks)",
                     array.name, mask.entries, mask.partial_blocks);
    }
  }
  return {};
}

/// The numbers of a view that count blocks: they must follow from its shape.
Status check_counts(const BlockMaskView& mask, const BlockShape& shape) {
  if (mask.q_blocks != shape.q_blocks()) {
    return invalid("block_mask.q_blocks: {}, expected ceil(seq_q / block_q) = {}", mask.q_blocks,
                   shape.q_blocks());
  }
  if (mask.kv_blocks != shape.kv_blocks()) {
    return invalid("block_mask.kv_blocks: {}, expected ceil(seq_kv / block_kv) = {}",
                   mask.kv_blocks, shape.kv_blocks());
  }
  const std::int64_t blocks = mask.batch * mask.heads * mask.q_blocks * mask.kv_blocks;
  if (mask.entries < 0 || mask.entries > blocks) {
    return invalid("block_mask.entries: {}, expected 0 to the number of blocks, {}", mask.entries,
                   blocks);
  }
  if (mask.partial_blocks < 0 || mask.partial_blocks > kMaxExtent ||
      !product({mask.partial_blocks, tile_words(shape)})) {
    return invalid("block_mask.partial_blocks: {}, expected at least 0 and below 2^31",
                   mask.partial_blocks);
  }
  return {};
}

}  // namespace

Status check_grid(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                  std::string_view prefix) {
  // A view has batch and heads beside its shape; builders take them as arguments of their own.
  const std::string_view own = prefix == "shape." ? "" : prefix;
  for (const Status& status :
       {check_block_size(shape.block_q, prefix, "block_q"),
        check_block_size(shape.block_kv, prefix, "block_kv"),
        check_length(shape.seq_q, prefix, "seq_q"), check_length(shape.seq_kv, prefix, "seq_kv"),
        check_count(batch, own, "batch"), check_count(heads, own, "heads")}) {
    if (!status.ok()) return status;
  }
  // Every array has at most this many elements (and one more), also where one of the axes is
  // empty; 8 bytes each must stay addressable.
  const std::int64_t q_blocks = std::max<std::int64_t>(shape.q_blocks(), 1);
  const std::int64_t kv_blocks = std::max<std::int64_t>(shape.kv_blocks(), 1);
  if (!product({batch, heads, q_blocks, kv_blocks, 8})) {
    return invalid(
        "{}batch * heads * q_blocks * kv_blocks: {} * {} * {} * {}, expected a product below "
        "2^60",
        own, batch, heads, shape.q_blocks(), shape.kv_blocks());
  }
  return {};
}

Status check_rows(const BlockMaskView& mask, std::string_view prefix) {
  const std::int64_t rows = mask.batch * mask.heads * mask.q_blocks;
  if (Status status = check_offsets(mask.row_offsets, rows, mask.entries, prefix, "row_offsets");
      !status.ok()) {
    return status;
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t previous = -1;
    for (std::int64_t e = mask.row_offsets[row]; e < mask.row_offsets[row + 1]; ++e) {
      const std::int64_t column = mask.columns[e];
      if (column <= previous || column >= mask.kv_blocks) {
        return invalid("{}columns[{}]: {}, expected above {} and below kv_blocks = {}", prefix, e,
                       column, previous, mask.kv_blocks);
      }
      previous = column;
      if (mask.bits_index[e] < -1 || mask.bits_index[e] >= mask.partial_blocks) {
        return invalid("{}bits_index[{}]: {}, expected -1 or below the number of tiles, {}", prefix,
                       e, mask.bits_index[e], mask.partial_blocks);
      }
    }
  }
  return {};
}

}  // namespace sparse

Status validate(const BlockMaskView& mask) {
  const BlockShape shape{mask.seq_q, mask.seq_kv, mask.block_q, mask.block_kv};
  if (mask.device.type != DeviceType::cpu) {
    return sparse::invalid("block_mask.device: {}, expected cpu, to be read on the host",
                           name_of(mask.device.type));
  }
  if (Status s = sparse::check_grid(shape, mask.batch, mask.heads, "block_mask."); !s.ok()) {
    return s;
  }
  if (Status s = sparse::check_counts(mask, shape); !s.ok()) return s;
  if (Status s = sparse::check_pointers(mask); !s.ok()) return s;
  if (Status s = sparse::check_rows(mask, "block_mask."); !s.ok()) return s;
  return sparse::check_transpose(mask);
}

}  // namespace tessera
