#include "cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

std::span<const BackwardVariant> backward_d256() {
  // D, keys, queries, warps_k, warps_q, warp_queries, stages, blocks
  constexpr BackwardConfig kRoomy{256, 64, 64, 2, 4, 16, 2, 1};
  constexpr BackwardConfig kMiddle =
      BackwardConfig{256, 64, 64, 2, 4, 16, 1, 1}.unless_fits(kRoomy);
  constexpr BackwardConfig kTight =
      BackwardConfig{256, 32, 32, 2, 2, 16, 1, 1}.unless_fits(kMiddle);
  static constexpr auto kVariants = backward_variants<kRoomy, kMiddle, kTight>();
  return kVariants;
}

}  // namespace tessera::cuda::sm80
