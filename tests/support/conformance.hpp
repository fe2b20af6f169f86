// Runs a case on every row of the table and compares each with the reference.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "support/case.hpp"

namespace tessera::test {

/// Whether TESSERA_TEST_REDUCED=1 asks for a small sweep (sanitizers are slow): `check_case` then
/// runs one case in a few.
bool reduced();

/// Names of the rows under test: all that this machine can run, of every device; only
/// TESSERA_FORCE's if that is set, and only those of TESSERA_TEST_DEVICE=cpu|cuda if that is.
const std::vector<std::string>& rows_under_test();

/// Those of them that take a case; the others refuse it with a reason.
std::vector<std::string> rows_under_test(const Case& c);

/// Those of them that take host tensors, for tests that do not go through `run_case`.
std::vector<std::string> host_rows_under_test(const Case& c);

/// Where a row's tensors lie: the CPU, or the first device of its kind.
Device device_of(const std::string& row);

/// The same inputs as if they lay on another device: enough to plan with, not to run.
/// `mask` holds the block mask's view.
Inputs described_on(Device device, const Inputs& inputs, BlockMaskView& mask);

/// What came of one run of forward, and backward if the case has it.
struct Attempt {
  Status status;
  std::string forward_row, backward_row;  ///< Rows that the plan says have run.
  bool workspace_intact = true;           ///< Nothing was written around the workspaces.
  bool inputs_intact = true;              ///< Nor to the inputs, or their surroundings on a GPU.
};

/// Plans with `row` forced and runs into `results`. Workspaces start filled with `workspace_fill`.
/// A CUDA row runs on copies in device memory and on a stream of its own.
Attempt run_case(const Case& c, const Workload& w, const Results& results, const std::string& row,
                 unsigned char workspace_fill = 0xff, Executor* executor = nullptr);

/// The oracle: the reference in f64 on the inputs as rounded to the case's dtype.
Results oracle_results(const Case& c, const Workload& w);

/// Gives a case that names no number of threads one that depends on the case; false if a reduced
/// sweep leaves the case out.
bool prepare(Case& c);

/// Compares what a row has computed with what it should have; reports failures, and whether there
/// were none.
using Judge = std::function<bool(const std::string& row, const Results& got)>;

/// Runs a prepared case on every row under test: each must take it, or refuse it with a reason
/// before anything is written; `judge` is asked about results; a second run must repeat them; and
/// the rest of what `check_case` lists.
void check_rows(const Case& c, const Workload& w, const Judge& judge);

/// Checks every row under test, with a number of threads that varies from case to case: against the
/// oracle within 2 · max|naive − oracle| + ε, that a second run gives the same bits, that nothing
/// but the results was written, and that the row asked for is the one that ran. Half of the cases
/// ask for deterministic gradients; in the others those of a GPU may differ from run to run, within
/// the tolerance. Failures name the row, the case, and the worst element. Rows may refuse a case
/// only with StatusCode::unsupported and a reason, and then must take its forward pass alone or
/// refuse that too; refusals are counted.
void check_case(const Case& c);

/// How far from exact a row's results may be on a workload of the case.
struct Tolerances {
  double o = 0, lse = 0, d_q = 0, d_k = 0, d_v = 0, d_bias = 0, d_sink = 0;
};
Tolerances tolerances(const Case& c, const Workload& w);

/// An element's indices, e.g. "[0,1,2,3]".
std::string position(const Tensor& t, std::int64_t index);

/// Largest |a − b| over all elements; infinite where one is NaN, or infinite and the other not.
double largest_difference(const Tensor& a, const Tensor& b);

}  // namespace tessera::test
