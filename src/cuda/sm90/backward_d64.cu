#include "cuda/sm90/backward.cuh"

namespace tessera::cuda::sm90 {

std::span<const BackwardVariant> backward_d64() {
  static constexpr auto kVariants = backward_variants<backward_config(64, 128)>();
  return kVariants;
}

}  // namespace tessera::cuda::sm90
