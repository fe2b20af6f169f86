#include "cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

std::span<const BackwardVariant> backward_d192() {
  static constexpr auto kVariants = backward_variants<
      // D, keys, queries, warps_k, warps_q, warp_queries, stages, blocks, extras
      BackwardConfig{192, 64, 64, 2, 4, 16, 2, 1, false},
      BackwardConfig{192, 64, 64, 2, 4, 16, 2, 1, true},
      BackwardConfig{192, 64, 64, 2, 4, 16, 1, 1, false},
      BackwardConfig{192, 64, 64, 2, 4, 16, 1, 1, true},
      BackwardConfig{192, 32, 32, 2, 2, 16, 2, 1, false},
      BackwardConfig{192, 32, 32, 2, 2, 16, 2, 1, true}>();
  return kVariants;
}

}  // namespace tessera::cuda::sm80
