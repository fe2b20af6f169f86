// The tensors of a case in device memory, byte for byte.
#pragma once

#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "device/block_mask.hpp"
#include "device/device.hpp"
#include "support/case.hpp"

namespace tessera::test {

/// The value, or the status's message thrown.
template <typename T>
T value_of(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().message());
  return std::move(result).value();
}
void require(const Status& status);

/// Copies whole buffers, so that strides, gaps, guards and poison are on the device what they are
/// on the host. Tensors that share a buffer share its copy. Throws what goes wrong.
class DeviceCopies {
 public:
  explicit DeviceCopies(Device device) : device_(device) {}

  /// What lies at the same place of the buffer's copy; absent if the tensor is.
  TensorView view(const Tensor& tensor);
  /// Everything a run reads. The block mask's copy lives in this object, too.
  Inputs inputs(const Workload& w);

  /// Everything that a run writes.
  Outputs outputs(const Results& results) { return {view(results.o), view(results.lse)}; }
  InputGradients gradients(const Results& results) {
    return {view(results.d_q), view(results.d_k), view(results.d_v), view(results.d_bias),
            view(results.d_sink)};
  }

  /// Makes every byte of a tensor's copy poison again.
  void poison(const Tensor& tensor);
  /// Copies a tensor's buffer, and with it all that shares it, back to the host.
  void bring_back(const Tensor& tensor);
  /// Whether the copy of a tensor's buffer still has the host's bytes.
  bool unchanged(const Tensor& tensor) const;

 private:
  Device device_;
  std::map<const void*, device::Buffer> copies_;  // by the host's address
  std::optional<device::BlockMaskCopy> block_mask_;
};

}  // namespace tessera::test
