#include "support/device_copies.hpp"

#include <cstring>
#include <type_traits>

namespace tessera::test {

void require(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

void* DeviceCopies::copy_of(const void* host, std::size_t bytes) {
  if (bytes == 0) return nullptr;
  const auto [place, added] = copies_.try_emplace(host);
  if (added) {
    place->second = value_of(device::Buffer::allocate(bytes, device_));
    require(device::copy({place->second.data(), device_}, {const_cast<void*>(host), {}}, bytes));
  }
  return place->second.data();
}

TensorView DeviceCopies::view(const Tensor& tensor) {
  TensorView view = tensor.view();
  if (!tensor.present()) return view;
  const auto& bytes = tensor.buffer()->bytes;
  const auto offset = static_cast<const std::uint8_t*>(view.data) - bytes.data();
  view.data = static_cast<std::byte*>(copy_of(bytes.data(), bytes.size())) + offset;
  view.device = device_;
  return view;
}

BlockMaskView DeviceCopies::view(const BlockMaskView& mask) {
  BlockMaskView view = mask;
  const auto move = [this](auto*& array, std::int64_t count) {
    using Element = std::remove_reference_t<decltype(*array)>;
    array = static_cast<Element*>(copy_of(array, count * sizeof(Element)));
  };
  move(view.row_offsets, mask.batch * mask.heads * mask.q_blocks + 1);
  move(view.columns, mask.entries);
  move(view.bits_index, mask.entries);
  move(view.transposed_offsets, mask.batch * mask.heads * mask.kv_blocks + 1);
  move(view.transposed_rows, mask.entries);
  move(view.transposed_entries, mask.entries);
  move(view.bits, mask.partial_blocks * mask.block_q * mask.words_per_row());
  view.device = device_;
  return view;
}

Inputs DeviceCopies::inputs(const Workload& w) {
  Inputs in = w.inputs();
  in.q = view(w.q);
  in.k = view(w.k);
  in.v = view(w.v);
  in.bias = view(w.bias);
  in.mask = view(w.mask);
  in.alibi_slopes = view(w.alibi_slopes);
  in.sink = view(w.sink);
  in.q_lens = view(w.q_lens);
  in.kv_lens = view(w.kv_lens);
  in.cu_seqlens_q = view(w.cu_seqlens_q);
  in.cu_seqlens_k = view(w.cu_seqlens_k);
  if (in.block_mask != nullptr) {
    block_view_ = view(*in.block_mask);
    in.block_mask = &block_view_;
  }
  return in;
}

void DeviceCopies::poison(const Tensor& tensor) {
  if (!tensor.present()) return;
  const device::Buffer& copy = copies_.at(tensor.buffer()->bytes.data());
  require(device::fill({copy.data(), device_}, 0xff, copy.bytes()));
}

void DeviceCopies::bring_back(const Tensor& tensor) {
  if (!tensor.present()) return;
  auto& bytes = tensor.buffer()->bytes;
  require(
      device::copy({bytes.data(), {}}, {copies_.at(bytes.data()).data(), device_}, bytes.size()));
}

bool DeviceCopies::unchanged(const Tensor& tensor) const {
  if (!tensor.present()) return true;
  const auto& bytes = tensor.buffer()->bytes;
  std::vector<std::uint8_t> now(bytes.size());
  require(device::copy({now.data(), {}}, {copies_.at(bytes.data()).data(), device_}, now.size()));
  return std::memcmp(now.data(), bytes.data(), now.size()) == 0;
}

}  // namespace tessera::test
