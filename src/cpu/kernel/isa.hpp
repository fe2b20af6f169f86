// One instruction set's functions, made from the algorithms and its vocabulary.
#pragma once

#include "cpu/kernel/backward.hpp"
#include "cpu/kernel/few_rows.hpp"
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
std::int64_t few_rows_scratch_floats(const Blocking& blocking) {
  return FewRowsScratch::carve<S>(blocking, nullptr).floats;
}

template <class S>
std::int64_t partial_rows_floats(const Blocking& blocking, std::int64_t rows) {
  return PartialRows::carve<S>(blocking, rows, nullptr).floats;
}

/// The few-rows functions of an instruction set, for `Isa`.
template <class S>
constexpr FewRowsFunctions few_rows_functions() {
  return {few_rows_scratch_floats<S>, partial_rows_floats<S>, clear_partial_rows<S>,
          few_rows_tile<S>, merge_few_rows<S>};
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
          store_rows<S>,
          few_rows_functions<S>()};
}

}  // namespace tessera::cpu
