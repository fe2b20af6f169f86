#include "cuda/sm90/forward.cuh"

namespace tessera::cuda::sm90 {

std::span<const ForwardVariant> forward_d64() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      //                              D    Dv   m    n   q  k  v  extras passes_over turns
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 3, 3, false}>(),
      forward_variant<ForwardConfig{f16, 64, 64, 192, 128, 2, 3, 3, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 256, 64, 2, 8, 8, false, true, false}>(),
      forward_variant<ForwardConfig{f16, 64, 64, 256, 64, 2, 8, 8, false, true, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 128, 128, 2, 5, 5, false}>(),
      forward_variant<ForwardConfig{f16, 64, 64, 128, 128, 2, 5, 5, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 128, 64, 2, 2, 2, true}>(),
      forward_variant<ForwardConfig{f16, 64, 64, 128, 64, 2, 2, 2, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm90
