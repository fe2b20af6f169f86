#include "cuda/sm80/sage.cuh"

namespace tessera::cuda::sm80 {

std::span<const SageVariant> sage_d128() {
  using enum ValueFormat;
  static constexpr SageVariant kVariants[] = {
      sage_variant<SageConfig{128, false, e4m3, 3}>(),
      sage_variant<SageConfig{128, true, e4m3, 3}>(),
      sage_variant<SageConfig{128, false, f16, 3}>(),
      sage_variant<SageConfig{128, true, f16, 3}>(),
      sage_variant<SageConfig{128, false, bf16, 3}>(),
      sage_variant<SageConfig{128, true, bf16, 3}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
