#include "cuda/sm90/forward.cuh"

namespace tessera::cuda::sm90 {

std::span<const ForwardVariant> forward_d192() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      //                              D    Dv   m    n   q  k  v  extras passes_over turns
      forward_variant<ForwardConfig{bf16, 192, 128, 128, 112, 1, 2, 2, false}>(),
      forward_variant<ForwardConfig{f16, 192, 128, 128, 112, 1, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 192, 192, 128, 96, 1, 2, 2, false}>(),
      forward_variant<ForwardConfig{f16, 192, 192, 128, 96, 1, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 192, 192, 128, 64, 1, 2, 2, true}>(),
      forward_variant<ForwardConfig{f16, 192, 192, 128, 64, 1, 2, 2, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm90
