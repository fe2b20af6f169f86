#include "cuda/sm80/f32_forward.cuh"

namespace tessera::cuda::sm80 {

std::span<const F32ForwardVariant> f32_forward_d512() {
  static constexpr F32ForwardVariant kVariants[] = {
      // D, Dv, m, n, warps, parts, stages, kept_q, extras
      f32_forward_variant<F32ForwardConfig{512, 512, 64, 16, 8, 2, 1, false, false}>(),
      f32_forward_variant<F32ForwardConfig{512, 512, 64, 16, 8, 2, 1, false, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
