#include "cuda/sm80/f32_backward.cuh"

namespace tessera::cuda::sm80 {

F32BackwardVariant f32_backward_d64(bool extras) {
  using enum F32Gradients;
  // gradients, D, outer, inner, warps, stages
  return f32_backward_variant<F32BackwardConfig{d_kv, 64, 128, 32, 8, 2},
                              F32BackwardConfig{d_q, 64, 128, 32, 8, 2}>(extras);
}

}  // namespace tessera::cuda::sm80
