// Where the tensors of a run lie: the host's memory on the CPU, copies of it on a GPU.
#pragma once

#include <map>
#include <optional>

#include "attention_case.hpp"
#include "device/block_mask.hpp"
#include "device/device.hpp"

namespace tessera::cli {

/// The same inputs as if they lay on `device`: enough to plan with. `block_mask` holds the block
/// mask's view.
Inputs described_on(Device device, const Inputs& inputs, BlockMaskView& block_mask);

/// Tensors on a device, by the host tensors that they are copies of. On the CPU they are those
/// themselves and nothing is copied. Throws Error if memory is short or a copy fails.
class DeviceTensors {
 public:
  explicit DeviceTensors(Device device) : device_(device) {}
  DeviceTensors(const DeviceTensors&) = delete;  // inputs() points into it
  DeviceTensors& operator=(const DeviceTensors&) = delete;

  Device device() const { return device_; }

  /// `view` is one of `tensor`'s elements on the host; gives the same elements on the device, as
  /// they are now.
  TensorView put(const HostTensor& tensor, const TensorView& view);
  TensorView put(const HostTensor& tensor) { return put(tensor, tensor.view()); }
  /// Everything that a run of the case reads but the gradients.
  Inputs put_inputs(const AttentionCase& attention_case);
  /// Copies what `put` gave for this tensor back into it.
  void bring_back(HostTensor& tensor);

 private:
  Device device_;
  std::map<const std::byte*, device::Buffer> copies_;
  std::optional<device::BlockMaskCopy> block_mask_;
};

}  // namespace tessera::cli
