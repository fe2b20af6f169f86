// The functions of an instruction set with matrix tiles.
#pragma once

#include "cpu/kernel/isa.hpp"
#include "cpu/kernel/matrix_backward.hpp"
#include "cpu/kernel/matrix_forward.hpp"

namespace tessera::cpu {

template <class S>
std::int64_t matrix_forward_scratch_floats(const Blocking& blocking) {
  return MatrixForwardScratch::carve<S>(blocking, nullptr, 0).floats;
}

/// The bias gradient is the vector kernels', and shares the scratch.
template <class S>
std::int64_t matrix_backward_scratch_floats(const Blocking& blocking) {
  const std::int64_t matrix = MatrixBackwardScratch::carve<S>(blocking, nullptr).floats;
  const std::int64_t vector = BackwardScratch::carve<S>(blocking, nullptr).floats;
  return matrix > vector ? matrix : vector;
}

template <class S>
constexpr Isa make_matrix_isa() {
  return {S::kLanes,
          S::kTileRows,
          S::kTileVectors,
          matrix_forward_scratch_floats<S>,
          matrix_backward_scratch_floats<S>,
          nullptr,
          matrix_backward_tile<S>,
          bias_gradient_tile<S>,
          store_rows<S>,
          few_rows_functions<S>(),
          strip_elements<S>,
          pack_strip<S>,
          matrix_forward<S>};
}

}  // namespace tessera::cpu
