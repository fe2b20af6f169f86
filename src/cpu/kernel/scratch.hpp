// Carving a worker's scratch into arrays.
#pragma once

#include <cstdint>

namespace tessera::cpu {

/// Hands out 64-byte-aligned arrays one after another. With a null base it only counts, so that the
/// same code lays the arrays out and sizes the workspace.
class Carver {
 public:
  explicit Carver(float* base) : base_(base) {}

  float* floats(std::int64_t count) {
    float* p = base_ != nullptr ? base_ + used_ : nullptr;
    used_ += (count + 15) / 16 * 16;
    return p;
  }
  std::int64_t used() const { return used_; }

 private:
  float* base_;
  std::int64_t used_ = 0;
};

}  // namespace tessera::cpu
