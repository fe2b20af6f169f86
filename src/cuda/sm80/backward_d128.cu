#include "cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

std::span<const BackwardVariant> backward_d128() {
  static constexpr auto kVariants = backward_variants<
      // D, keys, queries, warps_k, warps_q, warp_queries, stages, blocks, extras
      BackwardConfig{128, 128, 64, 4, 2, 32, 2, 1, false},
      BackwardConfig{128, 128, 64, 4, 2, 32, 2, 1, true},
      BackwardConfig{128, 64, 64, 2, 2, 32, 1, 2, false},
      BackwardConfig{128, 64, 64, 2, 2, 32, 1, 2, true}>();
  return kVariants;
}

}  // namespace tessera::cuda::sm80
