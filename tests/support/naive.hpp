// Standard, unfused attention in the tested dtype, and how far from exact a right answer may be.
#pragma once

#include "support/case.hpp"

namespace tessera::test {

/// What rounding does to one result, a sum of `terms` products that each hold a weight of the
/// softmax. Roundings of different terms are independent, so their effects add up as the root of
/// the sum of squares. Largest over the result's elements.
struct Bound {
  double terms = 0;
  double spread = 0;     ///< Root of the sum of the terms' squares.
  double direct = 0;     ///< The same over what the terms' own dot products round at: |x| |y|.
  double through_o = 0;  ///< The same over what enters by delta = Σ d_o · o as o was stored.
};

struct Bounds {
  /// Relative error of a weight exp(s − lse) in units of u: a few roundings at the magnitude of the
  /// scores, in s and in lse.
  double weight = 0;
  Bound o, lse, d_q, d_k, d_v, d_bias, d_sink;
};

/// ε: the error that a computation in f32 may add to a result of dtype `stored` whose largest
/// element is `largest`. With u the unit roundoff of f32,
///   u · (weight + √terms) · (spread + largest)   weights, and the sum's own rounding
///   + 4 u · direct + 4 u(dtype) / √3 · through_o  what the terms are made of, at four deviations
///   + u(stored) · largest                        the result's rounding, or half a denormal.
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
/// operations would be: S = round(scale · Q Kᵀ) …, P = round(softmax(S)), O = round(P V),
/// and the same for the gradients.
Naive naive_attention(const Case& c, const Workload& w);

}  // namespace tessera::test
