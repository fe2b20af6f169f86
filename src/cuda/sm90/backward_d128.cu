#include "cuda/sm90/backward.cuh"

namespace tessera::cuda::sm90 {

std::span<const BackwardVariant> backward_d128() {
  static constexpr auto kVariants = backward_variants<backward_config(128, 64)>();
  return kVariants;
}

}  // namespace tessera::cuda::sm90
