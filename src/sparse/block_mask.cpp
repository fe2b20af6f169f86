#include "tessera/block_mask.hpp"

#include <algorithm>
#include <limits>

#include "sparse/assembler.hpp"

namespace tessera {

BlockMaskView BlockMask::view() const {
  BlockMaskView view;
  view.batch = batch_;
  view.heads = heads_;
  view.seq_q = shape_.seq_q;
  view.seq_kv = shape_.seq_kv;
  view.block_q = shape_.block_q;
  view.block_kv = shape_.block_kv;
  view.q_blocks = shape_.q_blocks();
  view.kv_blocks = shape_.kv_blocks();
  view.row_offsets = row_offsets_.data();
  view.columns = columns_.data();
  view.bits_index = bits_index_.data();
  view.transposed_offsets = transposed_offsets_.data();
  view.transposed_rows = transposed_rows_.data();
  view.transposed_entries = transposed_entries_.data();
  view.bits = bits_.data();
  view.entries = static_cast<std::int64_t>(columns_.size());
  view.partial_blocks = static_cast<std::int64_t>(bits_.size()) / sparse::tile_words(shape_);
  return view;
}

BlockMaskAssembler::BlockMaskAssembler(const BlockShape& shape, std::int64_t batch,
                                       std::int64_t heads, std::int64_t entries) {
  mask_.shape_ = shape;
  mask_.batch_ = batch;
  mask_.heads_ = heads;
  mask_.row_offsets_.reserve(batch * heads * shape.q_blocks() + 1);
  mask_.row_offsets_.push_back(0);
  mask_.transposed_offsets_.reserve(batch * heads * shape.kv_blocks() + 1);
  mask_.columns_.reserve(entries);
  mask_.bits_index_.reserve(entries);
  mask_.transposed_rows_.reserve(entries);
  mask_.transposed_entries_.reserve(entries);
}

void BlockMaskAssembler::end_row() {
  mask_.row_offsets_.push_back(static_cast<std::int64_t>(mask_.columns_.size()));
}

std::int32_t BlockMaskAssembler::add_tile(std::span<const std::uint32_t> words) {
  const std::size_t tile = mask_.bits_.size() / words.size();
  if (tile > std::numeric_limits<std::int32_t>::max()) {
    throw std::length_error("more partial blocks than bits_index can name");
  }
  mask_.bits_.insert(mask_.bits_.end(), words.begin(), words.end());
  return static_cast<std::int32_t>(tile);
}

BlockMask BlockMaskAssembler::finish() && {
  mask_.columns_.shrink_to_fit();
  mask_.bits_index_.shrink_to_fit();
  mask_.bits_.shrink_to_fit();
  transpose(mask_);
  return std::move(mask_);
}

void BlockMaskAssembler::transpose(BlockMask& mask) {
  const std::int64_t q_blocks = mask.shape_.q_blocks();
  const std::int64_t kv_blocks = mask.shape_.kv_blocks();
  const std::int64_t planes = mask.batch_ * mask.heads_;
  std::vector<std::int64_t>& offsets = mask.transposed_offsets_;
  offsets.assign(planes * kv_blocks + 1, 0);
  mask.transposed_rows_.resize(mask.columns_.size());
  mask.transposed_entries_.resize(mask.columns_.size());

  // A counting sort by column. offsets[c + 1] counts column c, then holds where it begins, then
  // advances to where it ends, which is where c + 1 begins. Rows come in order, so stay ascending.
  const std::int64_t rows = planes * q_blocks;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t first = row / q_blocks * kv_blocks;
    for (std::int64_t e = mask.row_offsets_[row]; e < mask.row_offsets_[row + 1]; ++e) {
      ++offsets[first + mask.columns_[e] + 1];
    }
  }
  std::int64_t begin = 0;
  for (std::int64_t c = 1; c <= planes * kv_blocks; ++c) {
    begin += std::exchange(offsets[c], begin);
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t first = row / q_blocks * kv_blocks;
    for (std::int64_t e = mask.row_offsets_[row]; e < mask.row_offsets_[row + 1]; ++e) {
      const std::int64_t t = offsets[first + mask.columns_[e] + 1]++;
      mask.transposed_rows_[t] = static_cast<std::int32_t>(row % q_blocks);
      mask.transposed_entries_[t] = e;
    }
  }
}

namespace sparse {

Extent query_rows(const BlockShape& shape, std::int64_t query_block) {
  const std::int64_t begin = query_block * shape.block_q;
  return {begin, std::min(begin + shape.block_q, shape.seq_q)};
}

Extent keys(const BlockShape& shape, std::int64_t key_block) {
  const std::int64_t begin = key_block * shape.block_kv;
  return {begin, std::min(begin + shape.block_kv, shape.seq_kv)};
}

}  // namespace sparse
}  // namespace tessera
