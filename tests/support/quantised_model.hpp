// What a row that quantises must compute, and how far off the order of its sums may put it.
//
// Integers, codes and scales are the scheme's bits on every backend, so all that may differ is what
// f32 rounds behind them:
//   - a score's exponent by δ = u · (4 · magnitude + 8), u = 2⁻²⁴, magnitude that of everything
//   that
//     was added up to it. A weight is rounded to E4M3 or 16 bits afterwards, which hides δ except
//     where the weight lies so close to the middle between two numbers that it may become either.
//     Those weights are counted, with the step between the two: Δ.
//   - weights among the format's denormals depend on how far the running maximum had come. They may
//     be anything within half a denormal step, after a rounding of the significand: Δ, too.
//   - the sums: u · (√n + 8) of the terms' spread. Tensor cores that multiply 8-bit operands align
//     the 32 products of an instruction and the sum so far to the largest and keep 13 bits behind
//     its leading one; a GPU's row may lose what they cut off in sums of 128 keys, both from P v
//     and from P. Nothing in rows of one key.
//   - the result's own rounding to its dtype.
// Each element has its own tolerance. With S = Σ P:
//   |Δo| ≤ Σ Δ_j |z_j v_j − o| / (S − Σ Δ)  +  the sums' part  +  u(dtype) |o as computed|
//   |Δlse| ≤ Σ p_j δ_j + u · (√n + 8) + 4 u · (what lse is added up from)
#pragma once

#include "support/case.hpp"

namespace tessera::test {

struct QuantisedExpectation {
  Results values;         ///< o and lse in f64, contiguous.
  Tensor o_f32, lse_f32;  ///< Tolerance of every element, for sums in f32;
  Tensor o_short;         ///< what the tensor cores' short sums add to o's.
};

/// The scheme's formulas on dense matrices in double; the integers by quant/quantize.hpp.
QuantisedExpectation expect_quantised(const Case& c, const Workload& w);

}  // namespace tessera::test
