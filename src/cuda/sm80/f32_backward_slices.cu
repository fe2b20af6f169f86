#include "cuda/sm80/f32_backward.cuh"

namespace tessera::cuda::sm80 {

F32BackwardVariant f32_backward_d384() {
  using enum F32Gradients;
  // gradients, D, outer, inner, warps, stages, slices, extras
  static constexpr F32BackwardKernel kKernels[] = {
      f32_backward_kernel<F32BackwardConfig{d_kv, 384, 32, 16, 12, 1, true, true}>(),
      f32_backward_kernel<F32BackwardConfig{d_q, 384, 32, 16, 12, 1, true, true}>()};
  return kKernels;
}

F32BackwardVariant f32_backward_d512() {
  using enum F32Gradients;
  static constexpr F32BackwardKernel kKernels[] = {
      f32_backward_kernel<F32BackwardConfig{d_kv, 512, 32, 16, 8, 1, true, true}>(),
      f32_backward_kernel<F32BackwardConfig{d_q, 512, 32, 16, 8, 1, true, true}>()};
  return kKernels;
}

}  // namespace tessera::cuda::sm80
