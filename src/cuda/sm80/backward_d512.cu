#include "cuda/sm80/backward.cuh"

namespace tessera::cuda::sm80 {

std::span<const BackwardVariant> backward_d512() {
  // D, keys, queries, warps_k, warps_q, warp_queries, stages, blocks
  constexpr BackwardConfig kOnly{512, 32, 64, 2, 4, 16, 1, 1};
  static constexpr auto kVariants = backward_variants<kOnly>();
  return kVariants;
}

}  // namespace tessera::cuda::sm80
