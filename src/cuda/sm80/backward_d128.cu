#include "cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

std::span<const BackwardVariant> backward_d128() {
  // D, keys, queries, warps_k, warps_q, warp_queries, stages, blocks
  constexpr BackwardConfig kRoomy{128, 128, 64, 4, 2, 32, 2, 1};
  constexpr BackwardConfig kTight = BackwardConfig{128, 64, 64, 2, 4, 16, 1, 1}.unless_fits(kRoomy);
  static constexpr auto kVariants = backward_variants<kRoomy, kTight>();
  return kVariants;
}

}  // namespace tessera::cuda::sm80
