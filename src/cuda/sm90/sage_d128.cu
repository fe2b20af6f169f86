#include "cuda/sm90/sage.cuh"

namespace tessera::cuda::sm90 {

const SageVariant (&sage_d128())[2] {
  static constexpr SageVariant kVariants[2] = {
      //                       D    Dv   m    n   q  k,v extras
      sage_variant<SageConfig{128, 128, 192, 128, 2, 3, false}>(),
      sage_variant<SageConfig{128, 128, 128, 128, 2, 2, true}>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm90
