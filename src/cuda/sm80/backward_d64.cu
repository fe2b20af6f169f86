#include "cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

std::span<const BackwardVariant> backward_d64() {
  // D, keys, queries, warps_k, warps_q, warp_queries, stages, blocks
  constexpr BackwardConfig kOnly{64, 128, 64, 4, 1, 32, 2, 2};
  static constexpr auto kVariants = backward_variants<kOnly>();
  return kVariants;
}

}  // namespace tessera::cuda::sm80
