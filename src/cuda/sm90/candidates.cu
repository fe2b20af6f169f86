#include "cuda/sm90/candidates.hpp"
#include "cuda/sm90/forward.cuh"

namespace tessera::cuda::sm90 {

std::span<const ForwardVariant> forward_candidates() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      //                              D    Dv   m    n   q  k  v  extras passes_over turns
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 4, 3, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 4, 4, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 4, 4, false, true}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 256, 64, 2, 8, 8, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 256, 64, 2, 8, 8, false, false, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 4, 4, false, false, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 256, 64, 2, 8, 8, false, true}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 128, 2, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 128, 1, 3, 3, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 128, 2, 3, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 112, 2, 3, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 192, 64, 1, 4, 4, false, true}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 176, 1, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 144, 2, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 64, 1, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 80, 1, 2, 2, false}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm90
