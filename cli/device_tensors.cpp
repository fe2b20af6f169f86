#include "device_tensors.hpp"

#include "error.hpp"

namespace tessera::cli {

Inputs described_on(Device device, const Inputs& inputs, BlockMaskView& block_mask) {
  Inputs in = inputs;
  in.q.device = in.k.device = in.v.device = device;
  for (const OptionalInput& input : kOptionalInputs) (in.*input.view).device = device;
  if (in.block_mask != nullptr) {
    block_mask = *in.block_mask;
    block_mask.device = device;
    in.block_mask = &block_mask;
  }
  return in;
}

TensorView DeviceTensors::put(const HostTensor& tensor, const TensorView& view) {
  if (!tensor.present() || device_.type == DeviceType::cpu) return view;
  const auto bytes = static_cast<std::size_t>(tensor.bytes());
  device::Buffer& copy = copies_[tensor.data()];
  if (copy.bytes() != bytes) copy = require(device::Buffer::allocate(bytes, device_));
  require(device::copy({copy.data(), device_}, {const_cast<std::byte*>(tensor.data()), {}}, bytes));
  TensorView on_device = view;
  on_device.data = copy.data();
  on_device.device = device_;
  return on_device;
}

Inputs DeviceTensors::put_inputs(const AttentionCase& c) {
  Inputs inputs = c.inputs();
  if (device_.type == DeviceType::cpu) return inputs;
  inputs.q = put(c.q, inputs.q);
  inputs.k = put(c.k, inputs.k);
  inputs.v = put(c.v, inputs.v);
  for (const OptionalInput& input : kOptionalInputs) {
    inputs.*input.view = put(c.*input.tensor, inputs.*input.view);
  }
  if (inputs.block_mask != nullptr) {
    block_mask_ = require(device::BlockMaskCopy::make(*inputs.block_mask, device_));
    inputs.block_mask = &block_mask_->view();
  }
  return inputs;
}

void DeviceTensors::bring_back(HostTensor& tensor) {
  if (!tensor.present() || device_.type == DeviceType::cpu) return;
  const device::Buffer& copy = copies_.at(tensor.data());
  require(device::copy({tensor.data(), {}}, {copy.data(), device_}, copy.bytes()));
}

}  // namespace tessera::cli
