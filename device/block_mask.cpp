#include "device/block_mask.hpp"

#include <utility>

namespace tessera::device {

/// Replaces the host's array by a copy.
template <typename T>
Status BlockMaskCopy::move(const T*& array, std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  Result<Buffer> buffer = Buffer::allocate(bytes, view_.device);
  if (!buffer.ok()) return buffer.status();
  Status status = copy({buffer->data(), view_.device}, {const_cast<T*>(array), {}}, bytes);
  array = static_cast<const T*>(buffer->data());
  buffers_.push_back(std::move(buffer).value());
  return status;
}

Result<BlockMaskCopy> BlockMaskCopy::make(const BlockMaskView& mask, Device device) {
  BlockMaskCopy made;
  BlockMaskView& view = made.view_;
  view = mask;
  view.device = device;
  const std::int64_t planes = mask.batch * mask.heads;
  Status status = made.move(view.row_offsets, planes * mask.q_blocks + 1);
  if (status.ok()) status = made.move(view.columns, mask.entries);
  if (status.ok()) status = made.move(view.bits_index, mask.entries);
  if (status.ok()) {
    status = made.move(view.transposed_offsets, planes * mask.kv_blocks + 1);
  }
  if (status.ok()) status = made.move(view.transposed_rows, mask.entries);
  if (status.ok()) status = made.move(view.transposed_entries, mask.entries);
  if (status.ok()) {
    status = made.move(view.bits, mask.partial_blocks * mask.block_q * mask.words_per_row());
  }
  if (!status.ok()) return status;
  return made;
}

}  // namespace tessera::device
