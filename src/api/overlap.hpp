// Whether two strided views share memory: outputs must not overlap one another or the inputs.
#pragma once

#include "tessera/tensor.hpp"

namespace tessera {

/// True if some element of `a` and some element of `b` share a byte. Exact for interleaved views
/// (slices of one packed tensor have overlapping address ranges and no common element).
bool views_overlap(const TensorView& a, const TensorView& b);

/// True if two different indices of `view` address the same element.
bool overlaps_itself(const TensorView& view);

}  // namespace tessera
