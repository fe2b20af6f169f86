#include "support/device_copies.hpp"

#include <cstring>
#include <vector>

namespace tessera::test {

void require(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

TensorView DeviceCopies::view(const Tensor& tensor) {
  TensorView view = tensor.view();
  if (!tensor.present()) return view;
  auto& bytes = tensor.buffer()->bytes;
  const auto [place, added] = copies_.try_emplace(bytes.data());
  device::Buffer& copy = place->second;
  if (added) {
    copy = value_of(device::Buffer::allocate(bytes.size(), device_));
    require(device::copy({copy.data(), device_}, {bytes.data(), {}}, bytes.size()));
  }
  const auto offset = static_cast<const std::uint8_t*>(view.data) - bytes.data();
  view.data = static_cast<std::byte*>(copy.data()) + offset;
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
    block_mask_ = value_of(device::BlockMaskCopy::make(*in.block_mask, device_));
    in.block_mask = &block_mask_->view();
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
