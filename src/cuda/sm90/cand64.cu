#include "cuda/sm90/forward.cuh"
namespace tessera::cuda::sm90 {
std::span<const ForwardVariant> cand64() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      forward_variant<ForwardConfig{bf16, 64, 64, 256, 64, 2, 8, 8, false, true, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 256, 64, 2, 8, 8, false, false, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 256, 64, 2, 8, 8, false, true}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 256, 64, 2, 5, 4, false, true, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 5, 5, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 4, 4, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 3, 3, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 4, 4, false, false, false}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 5, 5, false, true}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 192, 128, 2, 4, 4, false, true}>(),
      forward_variant<ForwardConfig{bf16, 64, 64, 128, 128, 2, 5, 5, false}>(),
  };
  return kVariants;
}
}
