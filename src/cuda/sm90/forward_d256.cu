#include "cuda/sm90/forward.cuh"

namespace tessera::cuda::sm90 {

std::span<const ForwardVariant> forward_d256() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      //                              D    Dv   m    n   q  k  v  extras passes_over turns
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 64, 1, 2, 3, false}>(),
      forward_variant<ForwardConfig{f16, 256, 256, 128, 64, 1, 2, 3, false}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 64, 1, 2, 2, true}>(),
      forward_variant<ForwardConfig{f16, 256, 256, 128, 64, 1, 2, 2, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm90
