// How far a row of the table is from the reference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention_case.hpp"
#include "check/naive.hpp"

namespace tessera::cli {

/// Differences over all elements. Equal infinities (the LSE of masked rows) count as equal; any
/// other infinity, and NaN, makes `max_abs` infinite.
struct Difference {
  double max_abs = 0;
  double cosine = 1;       ///< Cosine similarity; 1 if both are zero.
  double relative_l1 = 0;  ///< Σ|out − ref| / Σ|ref|.
  double rmse = 0;
};
Difference difference(const HostTensor& out, const HostTensor& reference);

/// The same, one pair of elements after the other.
class DifferenceSum {
 public:
  void add(double out, double reference);
  Difference get() const;

 private:
  double max_abs_ = 0, dot_ = 0, out_squares_ = 0, reference_squares_ = 0;
  double l1_ = 0, reference_l1_ = 0, squares_ = 0;
  std::int64_t count_ = 0;
};

/// One result of one row.
struct TensorCheck {
  const char* name = "";
  bool backward = false;
  Difference difference;
  double tolerance = 0;
  bool repeatable = true;  ///< A second run gave the same bits.

  bool passed() const { return difference.max_abs <= tolerance && repeatable; }
  /// Error in units of the tolerance: what to sort by.
  double severity() const;
};

/// One row on one case. `rejection` is not empty if the row does not accept the case.
struct RowCheck {
  std::string row;
  std::string rejection;
  std::vector<TensorCheck> tensors;
};

/// Where a row runs.
struct RowToCheck {
  std::string name;
  Device device;
};

/// The oracle of one case: the reference in f64 on the inputs as rounded to the case's dtype, and
/// what the naive computation makes of them.
class Oracle {
 public:
  /// Throws Error if the case is not valid.
  Oracle(const AttentionCase& attention_case, Executor* executor);

  /// Runs `row` twice on outputs filled with NaN, forward and, if the case has d_o, backward. A
  /// GPU's gradients must have the same bits both times only if the case asks for it.
  RowCheck check(const RowToCheck& row) const;

 private:
  /// 2 · max|naive − reference| + ε for result `index`, stored as `stored`.
  double tolerance(std::size_t index, DType stored) const;

  const AttentionCase& case_;
  Executor* executor_;
  Results exact_;
  NaiveRun naive_;
};

}  // namespace tessera::cli
