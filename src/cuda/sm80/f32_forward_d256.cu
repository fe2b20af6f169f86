#include "cuda/sm80/f32_forward.cuh"

namespace tessera::cuda::sm80 {

std::span<const F32ForwardVariant> f32_forward_d256() {
  static constexpr F32ForwardVariant kVariants[] = {
      // D, Dv, m, n, warps, parts, stages, kept_q, extras
      f32_forward_variant<F32ForwardConfig{256, 256, 128, 16, 8, 1, 2, false, false}>(),
      f32_forward_variant<F32ForwardConfig{256, 256, 128, 16, 8, 1, 2, false, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
