// Runs a case on every row of the table and compares each with the reference.
#pragma once

#include <string>
#include <vector>

#include "support/case.hpp"

namespace tessera::test {

/// Whether TESSERA_TEST_REDUCED=1 asks for a small sweep (sanitizers are slow): `check_case` then
/// runs one case in a few.
bool reduced();

/// Names of the rows under test: all that this machine can run with host tensors, or only
/// TESSERA_FORCE's if it is set.
const std::vector<std::string>& rows_under_test();

/// What came of one run of forward, and backward if the case has it.
struct Attempt {
  Status status;
  std::string forward_row, backward_row;  ///< Rows that the plan says have run.
  bool workspace_intact = true;           ///< Nothing was written around the workspaces.
};

/// Plans with `row` forced and runs into `results`. Workspaces start filled with `workspace_fill`.
Attempt run_case(const Case& c, const Workload& w, const Results& results, const std::string& row,
                 unsigned char workspace_fill = 0xff, Executor* executor = nullptr);

/// The oracle: the reference in f64 on the inputs as rounded to the case's dtype.
Results oracle_results(const Case& c, const Workload& w);

/// Checks every row under test, with a number of threads that varies from case to case: against the
/// oracle within 2 · max|naive − oracle| + ε, that a second run gives the same bits, that nothing
/// but the results was written, and that the row asked for is the one that ran. Failures name the
/// row, the case, and the worst element. Rows may refuse a case only with StatusCode::unsupported
/// and a reason; refusals are counted.
void check_case(const Case& c);

/// How far from exact a row's results may be on a workload of the case.
struct Tolerances {
  double o = 0, lse = 0, d_q = 0, d_k = 0, d_v = 0, d_bias = 0, d_sink = 0;
};
Tolerances tolerances(const Case& c, const Workload& w);

/// Largest |a − b| over all elements; infinite where one is NaN, or infinite and the other not.
double largest_difference(const Tensor& a, const Tensor& b);

}  // namespace tessera::test
