#include "cuda/sm80/f32_backward.cuh"

namespace tessera::cuda::sm80 {

F32BackwardVariant f32_backward_d256(bool extras) {
  using enum F32Gradients;
  // gradients, D, outer, inner, warps, stages
  return f32_backward_variant<F32BackwardConfig{d_v, 256, 128, 16, 8, 2},
                              F32BackwardConfig{d_k, 256, 64, 16, 4, 2},
                              F32BackwardConfig{d_q, 256, 64, 16, 4, 2}>(extras);
}

}  // namespace tessera::cuda::sm80
