#include "cuda/sm80/forward.cuh"

namespace tessera::cuda::sm80 {

std::span<const ForwardVariant> forward_d64() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      //                              D    Dv   m    n   warps stages blocks extras listed
      forward_variant<ForwardConfig{bf16, 64, 64, 128, 64, 4, 2, 3, false, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 128, 64, 4, 2, 3, false, true}>(),
      forward_variant<ForwardConfig{f16, 64, 64, 128, 64, 4, 2, 3, false, false}>(),
      forward_variant<ForwardConfig{f16, 64, 64, 128, 64, 4, 2, 3, false, true}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 128, 64, 4, 2, 2, true, true}>(),
      forward_variant<ForwardConfig{f16, 64, 64, 128, 64, 4, 2, 2, true, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
