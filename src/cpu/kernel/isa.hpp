// One instruction set's functions, made from the algorithms and its vocabulary.
#pragma once

#include "cpu/kernel/backward.hpp"
#include "cpu/kernel/forward.hpp"

namespace tessera::cpu {

template <class S>
std::int64_t forward_scratch_floats(const Blocking& blocking) {
  return ForwardScratch::carve<S>(blocking, nullptr).floats;
}

template <class S>
std::int64_t backward_scratch_floats(const Blocking& blocking) {
  return BackwardScratch::carve<S>(blocking, nullptr).floats;
}

template <class S>
constexpr Isa make_isa() {
  return {S::kLanes,
          S::kTileRows,
          S::kTileVectors,
          forward_scratch_floats<S>,
          backward_scratch_floats<S>,
          forward_tile<S>,
          backward_tile<S>,
          bias_gradient_tile<S>,
          store_rows<S>};
}

}  // namespace tessera::cpu
