#include "cuda/sm80/sage.cuh"

namespace tessera::cuda::sm80 {

std::span<const SageVariant> sage_d256() {
  using enum ValueFormat;
  static constexpr SageVariant kVariants[] = {
      sage_variant<SageConfig{256, false, e4m3, 2}>(),
      sage_variant<SageConfig{256, true, e4m3, 2}>(),
      sage_variant<SageConfig{256, false, f16, 2}>(),
      sage_variant<SageConfig{256, true, f16, 2}>(),
      sage_variant<SageConfig{256, false, bf16, 2}>(),
      sage_variant<SageConfig{256, true, bf16, 2}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
