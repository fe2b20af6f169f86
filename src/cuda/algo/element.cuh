// DType → type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tessera/tensor.hpp"

namespace tessera::cuda {

template <DType>
struct ElementOf;
template <>
struct ElementOf<DType::f16> {
  using Type = __half;
};
template <>
struct ElementOf<DType::bf16> {
  using Type = __nv_bfloat16;
};

}  // namespace tessera::cuda
