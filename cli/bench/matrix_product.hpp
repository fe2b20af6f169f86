// A large matrix product on a GPU, the ceiling of its tensor cores, through cuBLASLt.
#pragma once

#include <cstdint>
#include <memory>

#include "device/device.hpp"
#include "tessera/tensor.hpp"

namespace tessera::cli::bench {

/// C = Aᵀ B of square matrices in one dtype, accumulated in f32 (f32 without TF32).
class MatrixProduct {
 public:
  /// cuBLASLt is not linked: it is loaded if the dynamic linker finds it. An Error says why not.
  static Result<std::unique_ptr<MatrixProduct>> load(const device::Stream& stream);
  virtual ~MatrixProduct() = default;

  /// Makes matrices of the dtype (f32, f16 or bf16), random, in place of those of another.
  virtual Status prepare(DType dtype) = 0;
  /// Enqueues one product.
  virtual Status run() = 0;
  /// Its operations.
  virtual double flops() const = 0;
};

}  // namespace tessera::cli::bench
