#include "cuda/sm90/tensor_map.hpp"

#include <cuda_runtime_api.h>

namespace tessera::cuda::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, found through the runtime: nothing is linked against the driver.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  constexpr unsigned kSince = 12000;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             kSince, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error == cudaSuccess && found == cudaDriverEntryPointSuccess) {
    return reinterpret_cast<Encode>(function);
  }
  cudaGetLastError();
  return nullptr;
}

}  // namespace

std::optional<CUtensorMap> tensor_map(const Rows& rows, const RowsShape& shape) {
  static const Encode kEncode = find_encode();
  if (kEncode == nullptr || !rows.vectors) return std::nullopt;
  constexpr std::int64_t kElementBytes = 2;
  constexpr std::int64_t kVectorBytes = 16;
  const cuuint64_t sizes[4] = {
      static_cast<cuuint64_t>(shape.head_dim), static_cast<cuuint64_t>(shape.rows),
      static_cast<cuuint64_t>(shape.heads), static_cast<cuuint64_t>(shape.batch)};
  // The stride of a dimension of one index does not matter, but must be a valid one.
  const auto bytes = [](std::int64_t size, std::int64_t stride) {
    return static_cast<cuuint64_t>(size == 1 ? kVectorBytes : stride * kElementBytes);
  };
  const cuuint64_t strides[3] = {bytes(shape.rows, rows.stride_s),
                                 bytes(shape.heads, rows.stride_h),
                                 bytes(shape.batch, rows.stride_b)};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(shape.panel),
                             static_cast<cuuint32_t>(shape.box_rows),
                             static_cast<cuuint32_t>(shape.box_heads), 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      kEncode(&map,
              shape.dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                        : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
              4, rows.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
              shape.panel == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return std::nullopt;
  return map;
}

}  // namespace tessera::cuda::sm90
