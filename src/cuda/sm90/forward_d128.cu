#include "cuda/sm90/forward.cuh"

namespace tessera::cuda::sm90 {

std::span<const ForwardVariant> forward_d128() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      //                              D    Dv   m    n   q  k  v  extras passes_over turns
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 160, 2, 2, 2, false}>(),
      forward_variant<ForwardConfig{f16, 128, 128, 128, 160, 2, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 128, 2, 2, 3, false}>(),
      forward_variant<ForwardConfig{f16, 128, 128, 128, 128, 2, 2, 3, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 64, 2, 2, 2, true}>(),
      forward_variant<ForwardConfig{f16, 128, 128, 128, 64, 2, 2, 2, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm90
