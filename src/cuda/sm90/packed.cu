#include "cuda/sm90/packed.cuh"

namespace tessera::cuda::sm90 {
namespace {

template <DType kDType, int kHeadDim, int kRows, int kStages>
constexpr PackedVariant variant() {
  constexpr int kKeys = 128;
  return packed_variant<ForwardConfig{.dtype = kDType,
                                      .head_dim = kHeadDim,
                                      .head_dim_v = kHeadDim,
                                      .tile_m = kRows,
                                      .tile_n = kKeys,
                                      .q_stages = 1,
                                      .k_stages = kStages,
                                      .v_stages = kStages,
                                      .extras = false,
                                      .turns = kRows > kGroupRows,
                                      .packed = true}>();
}

}  // namespace

std::span<const PackedVariant> packed_variants() {
  using enum DType;
  static constexpr PackedVariant kVariants[] = {
      //      D   rows stages
      variant<bf16, 64, 64, 6>(),   variant<f16, 64, 64, 6>(),   variant<bf16, 64, 128, 6>(),
      variant<f16, 64, 128, 6>(),   variant<bf16, 128, 64, 3>(), variant<f16, 128, 64, 3>(),
      variant<bf16, 128, 128, 3>(), variant<f16, 128, 128, 3>(),
  };
  return kVariants;
}

}  // namespace tessera::cuda::sm90
