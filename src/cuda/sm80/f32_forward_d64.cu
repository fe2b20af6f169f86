#include "cuda/sm80/f32_forward.cuh"

namespace tessera::cuda::sm80 {

std::span<const F32ForwardVariant> f32_forward_d64() {
  static constexpr F32ForwardVariant kVariants[] = {
      // D, Dv, m, n, warps, parts, stages, kept_q, extras
      f32_forward_variant<F32ForwardConfig{64, 64, 128, 64, 8, 1, 2, true, false}>(),
      f32_forward_variant<F32ForwardConfig{64, 64, 128, 64, 8, 1, 2, true, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm80
