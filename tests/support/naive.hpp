// Standard, unfused attention in the tested dtype, and how far from exact a right answer may be.
#pragma once

#include "support/case.hpp"

namespace tessera::test {

/// What rounding does to one result, a sum of `terms` products whose magnitudes add up to at most
/// `magnitude`, each with a weight of the softmax in it.
struct Bound {
  double magnitude = 0;
  double terms = 0;
  double through_o = 0;  ///< Magnitude of what enters by delta, made of o as it was stored.
};

struct Bounds {
  /// Relative error of a weight exp(s − lse) in units of u: a few roundings at the magnitude of the
  /// scores, in s and in lse.
  double weight = 0;
  Bound o, lse, d_q, d_k, d_v, d_bias, d_sink;
};

/// ε: the error that a computation in f32 may add to a result of dtype `stored` whose largest
/// element is `largest`. With u the unit roundoff of f32,
///   u · (weight + √terms) · magnitude       weights, and the sum's own rounding (random signs)
///   + u(dtype) · through_o                  o's rounding to the dtype
///   + u(stored) · largest                   the result's rounding, or half a denormal.
double rounding_allowance(const Bounds& bounds, const Bound& bound, DType dtype, DType stored,
                          double largest);

/// The same if all arithmetic were rounded to `dtype`; what the naive computation must keep.
double naive_allowance(const Bounds& bounds, const Bound& bound, DType dtype, double largest);

/// Unit roundoff: 2^-24, 2^-11, 2^-8, 2^-53.
double unit_roundoff(DType dtype);

struct Naive {
  Results results;  ///< In f32, as rounded by the computation; no lse.
  Bounds bounds;
};

/// Each product accumulates in f32 and is rounded to the dtype, as a sequence of framework
/// operations would be: S = round(scale · round(Q Kᵀ)) …, P = round(softmax(S)), O = round(P V),
/// and the same for the gradients.
Naive naive_attention(const Case& c, const Workload& w);

}  // namespace tessera::test
