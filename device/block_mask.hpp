// Block masks in device memory.
#pragma once

#include <vector>

#include "device/device.hpp"
#include "tessera/block_mask.hpp"

namespace tessera::device {

/// A copy of a block mask's arrays on a device.
class BlockMaskCopy {
 public:
  /// `mask` is on the host and need not outlive the copy.
  static Result<BlockMaskCopy> make(const BlockMaskView& mask, Device device);

  /// Valid as long as this object is.
  const BlockMaskView& view() const { return view_; }

 private:
  BlockMaskCopy() = default;

  template <typename T>
  Status move(const T*& array, std::int64_t count);

  BlockMaskView view_;
  std::vector<Buffer> buffers_;
};

}  // namespace tessera::device
