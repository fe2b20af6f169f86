#include "cuda/sm80/f32_backward.cuh"

namespace tessera::cuda::sm80 {

std::span<const F32BackwardVariant> f32_backward_d128() {
  // D, outer, inner, warps, stages
  constexpr F32BackwardConfig kConfig{128, 128, 32, 8, 2, false};
  static constexpr F32BackwardVariant kVariants[] = {
      f32_backward_variant<kConfig>(),
      f32_backward_variant<kConfig.with_extras()>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
