#include "cuda/sm80/f32_forward.cuh"

namespace tessera::cuda::sm80 {

std::span<const F32ForwardVariant> f32_forward_d512() {
  static constexpr F32ForwardVariant kVariants[] = {
      // D, Dv, m, n, warps, stages, kept_q, extras
      f32_forward_variant<F32ForwardConfig{512, 256, 64, 16, 4, 1, false, false}>(),
      f32_forward_variant<F32ForwardConfig{512, 256, 64, 16, 4, 1, false, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
