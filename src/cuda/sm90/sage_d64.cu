#include "cuda/sm90/sage.cuh"

namespace tessera::cuda::sm90 {

std::span<const SageVariant> sage_d64() {
  static constexpr SageVariant kVariants[] = {
      //                       D    Dv   m    n   q  k,v scope          shares
      sage_variant<SageConfig{64, 64, 192, 128, 2, 3, SageConfig::plain}>(),
      sage_variant<SageConfig{64, 64, 128, 128, 2, 3, SageConfig::plain}>(),
      sage_variant<SageConfig{64, 64, 192, 128, 2, 3, SageConfig::smooth_q, true}>(),
      sage_variant<SageConfig{64, 64, 192, 128, 2, 3, SageConfig::smooth_q}>(),
      sage_variant<SageConfig{64, 64, 128, 128, 2, 3, SageConfig::smooth_q}>(),
      sage_variant<SageConfig{64, 64, 128, 128, 2, 2, SageConfig::everything}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm90
