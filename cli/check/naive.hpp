// Standard, unfused attention with its matrix products in the tested dtype: the yardstick for how
// far from exact a right answer may be.
#pragma once

#include <array>

#include "attention_case.hpp"

namespace tessera::cli {

/// How rounding reaches one result, a sum of `terms` products each of which carries a weight of the
/// softmax. Within a query row errors are added up; those of different rows, which have nothing to
/// do with one another, as squares.
struct RoundingBound {
  double in_f32 = 0;     ///< Error of the products, in units of f32's roundoff.
  double through_o = 0;  ///< What enters by delta, made of o as stored, in units of its roundoff.
  double terms = 0;
};

struct NaiveRun {
  Results results;
  std::array<RoundingBound, kResults.size()> bounds;  ///< In the order of kResults.
};

/// Forward, and backward if the case has d_o. Operands of every product (q, k, v, P, d_o, dS) are
/// in the case's dtype, sums in f32. O(Sq · Skv) memory for one head. The case has been validated.
NaiveRun run_naive(const AttentionCase& attention_case);

/// Unit roundoff of a floating-point dtype: 2^-24, 2^-11, 2^-8 or 2^-53.
double unit_roundoff(DType dtype);

/// ε, what computing in f32 may add to kResults[index], `exact` by the reference, when it is stored
/// as `stored`. With u f32's roundoff, N the result's elements and c = 1 + √(2 ln N), about how
/// many standard deviations the largest of N errors is away,
///   c · (u · in_f32 + u(dtype) · through_o)   the products, and o's rounding on its way into delta
///   + (u · √terms + u(stored)) · largest      the sum's rounding (random signs) and the result's
///   + half a denormal
double rounding_allowance(const NaiveRun& naive, std::size_t index, DType dtype, DType stored,
                          const HostTensor& exact);

}  // namespace tessera::cli
