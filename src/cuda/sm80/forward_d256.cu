#include "cuda/sm80/forward.cuh"

namespace tessera::cuda::sm80 {

std::span<const ForwardVariant> forward_d256() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      //                              D    Dv   m    n   warps stages blocks extras listed
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 64, 8, 2, 1, false, false}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 64, 8, 2, 1, false, true}>(),
      forward_variant<ForwardConfig{f16, 256, 256, 128, 64, 8, 2, 1, false, false}>(),
      forward_variant<ForwardConfig{f16, 256, 256, 128, 64, 8, 2, 1, false, true}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 64, 32, 4, 2, 2, false, false}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 64, 32, 4, 2, 2, false, true}>(),
      forward_variant<ForwardConfig{f16, 256, 256, 64, 32, 4, 2, 2, false, false}>(),
      forward_variant<ForwardConfig{f16, 256, 256, 64, 32, 4, 2, 2, false, true}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 64, 32, 4, 2, 2, true, true}>(),
      forward_variant<ForwardConfig{f16, 256, 256, 64, 32, 4, 2, 2, true, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
