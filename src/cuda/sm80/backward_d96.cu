#include "cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

std::span<const BackwardVariant> backward_d96() {
  // D, keys, queries, warps_k, warps_q, warp_queries, stages, blocks
  constexpr BackwardConfig kOnly{96, 64, 64, 2, 2, 32, 2, 2};
  static constexpr auto kVariants = backward_variants<kOnly>();
  return kVariants;
}

}  // namespace tessera::cuda::sm80
