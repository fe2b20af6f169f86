#include "cuda/sm80/f32_backward.cuh"

namespace tessera::cuda::sm80 {

F32BackwardVariant f32_backward_d128(bool extras) {
  using enum F32Gradients;
  // gradients, D, outer, inner, warps, stages
  return f32_backward_variant<F32BackwardConfig{d_kv, 128, 128, 32, 8, 2},
                              F32BackwardConfig{d_q, 128, 128, 32, 8, 2}>(extras);
}

}  // namespace tessera::cuda::sm80
