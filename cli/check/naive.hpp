// Standard, unfused attention with its matrix products in the tested dtype: the yardstick for how
// far from exact a right answer may be.
#pragma once

#include <array>

#include "attention_case.hpp"

namespace tessera::cli {

/// How rounding in f32 reaches one result, a sum of `terms` products whose magnitudes add up to at
/// most `magnitude` and each of which carries a weight of the softmax.
struct RoundingBound {
  double magnitude = 0;
  double terms = 0;
  double through_o = 0;  ///< The part of `magnitude` that comes from o as stored (delta).
};

struct NaiveRun {
  Results results;
  /// Relative error of a softmax weight exp(s − lse), in units of f32's roundoff: the magnitude at
  /// which scores are rounded.
  double weight = 0;
  std::array<RoundingBound, kResults.size()> bounds;  ///< In the order of kResults.
};

/// Forward, and backward if the case has d_o. Operands of every product (q, k, v, P, d_o, dS) are
/// in the case's dtype, sums in f32. O(Sq · Skv) memory for one head. The case has been validated.
NaiveRun run_naive(const AttentionCase& attention_case);

/// Unit roundoff of a floating-point dtype: 2^-24, 2^-11, 2^-8 or 2^-53.
double unit_roundoff(DType dtype);

/// ε, what computing in f32 may add to kResults[index] when its elements are at most `largest` and
/// stored as `stored`: with u f32's roundoff,
///   u · (weight + √terms) · magnitude    the weights, and the sum's rounding (random signs)
///   + u(dtype) · through_o               o's rounding on its way into delta
///   + u(stored) · largest                the result's own rounding, or half a denormal
double rounding_allowance(const NaiveRun& naive, std::size_t index, DType dtype, DType stored,
                          double largest);

}  // namespace tessera::cli
