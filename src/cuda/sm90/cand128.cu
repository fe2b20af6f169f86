#include "cuda/sm90/forward.cuh"
namespace tessera::cuda::sm90 {
std::span<const ForwardVariant> cand128() {
  using enum DType;
  static constexpr ForwardVariant kVariants[] = {
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 128, 1, 3, 3, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 128, 2, 3, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 128, 2, 2, 3, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 128, 2, 3, 2, false, false, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 160, 2, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 144, 1, 3, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 128, 128, 128, 112, 2, 3, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 64, 1, 2, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 64, 1, 3, 2, false}>(),
      forward_variant<ForwardConfig{bf16, 256, 256, 128, 64, 1, 2, 3, false}>(),
  };
  return kVariants;
}
}
