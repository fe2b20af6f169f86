#include "cuda/sm80/forward.cuh"

namespace tessera::cuda::sm80 {

std::span<const ForwardVariant> forward_d512() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      //                              D    Dv   m    n   warps stages blocks extras listed
      forward_variant<ForwardConfig{bf16, 512, 256, 128, 32, 8, 2, 1, false, true}>(),
      forward_variant<ForwardConfig{f16, 512, 256, 128, 32, 8, 2, 1, false, true}>(),
      forward_variant<ForwardConfig{bf16, 512, 256, 128, 32, 8, 2, 1, true, true}>(),
      forward_variant<ForwardConfig{f16, 512, 256, 128, 32, 8, 2, 1, true, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
