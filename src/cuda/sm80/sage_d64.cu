#include "cuda/sm80/sage.cuh"

namespace tessera::cuda::sm80 {

std::span<const SageVariant> sage_d64() {
  using enum ValueFormat;
  static constexpr SageVariant kVariants[] = {
      sage_variant<SageConfig{64, false, e4m3, 4}>(), sage_variant<SageConfig{64, true, e4m3, 4}>(),
      sage_variant<SageConfig{64, false, f16, 4}>(),  sage_variant<SageConfig{64, true, f16, 4}>(),
      sage_variant<SageConfig{64, false, bf16, 4}>(), sage_variant<SageConfig{64, true, bf16, 4}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
