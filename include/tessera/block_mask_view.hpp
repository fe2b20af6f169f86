// A block mask as kernels read it.
#pragma once

#include <cstdint>

#include "tessera/tensor.hpp"

namespace tessera {

/// A block mask in compressed-sparse-row form, as kernels read it. For each (batch or all, head or
/// all, query block) it lists the key blocks to visit; every other block contributes nothing and is
/// not read. Non-owning; `BlockMask` owns one.
///
/// Row r = (b · heads + h) · q_blocks + query_block has entries [row_offsets[r], row_offsets[r+1]).
/// Entry e is key block columns[e], ascending and without repetition within a row. If bits_index[e]
/// is −1 the block is *full* (no element test); otherwise it is *partial* and element (i, j) of the
/// block (i, j counted from the block's corner) exists iff bit j % 32 of
/// bits[(bits_index[e] · block_q + i) · words_per_row + j / 32] is set, with
/// words_per_row = (block_kv + 31) / 32.
///
/// The transpose lists, for column c = (b · heads + h) · kv_blocks + key_block, the query blocks
/// transposed_rows[t] that visit it (ascending) and the entry transposed_entries[t] that does.
///
/// A block mask composes with every other mask: an element takes part in the softmax only if the
/// block mask and all of them allow it.
struct BlockMaskView {
  std::int64_t batch = 0;  ///< 1 (shared by all sequences) or B.
  std::int64_t heads = 0;  ///< 1 (shared by all heads) or Hq.
  std::int64_t seq_q = 0;  ///< Query rows covered; at least the longest sequence's.
  std::int64_t seq_kv = 0;
  std::int64_t block_q = 0;  ///< A multiple of 16.
  std::int64_t block_kv = 0;
  std::int64_t q_blocks = 0;  ///< ceil(seq_q / block_q).
  std::int64_t kv_blocks = 0;
  const std::int64_t* row_offsets = nullptr;         ///< [batch · heads · q_blocks + 1]
  const std::int32_t* columns = nullptr;             ///< [entries]
  const std::int32_t* bits_index = nullptr;          ///< [entries]
  const std::int64_t* transposed_offsets = nullptr;  ///< [batch · heads · kv_blocks + 1]
  const std::int32_t* transposed_rows = nullptr;     ///< [entries]
  const std::int64_t* transposed_entries = nullptr;  ///< [entries]
  const std::uint32_t* bits = nullptr;  ///< [partial blocks · block_q · words_per_row]
  std::int64_t entries = 0;
  std::int64_t partial_blocks = 0;
  Device device;

  std::int64_t words_per_row() const { return (block_kv + 31) / 32; }
  /// Listed blocks over all blocks, 0 … 1 (1 for an empty mask).
  double density() const {
    const double all = static_cast<double>(batch * heads * q_blocks) * kv_blocks;
    return all == 0 ? 1.0 : entries / all;
  }
};

}  // namespace tessera
