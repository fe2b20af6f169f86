// Runs a case in sage8 or sage4 on every row that quantises, and compares it with the scheme's
// model.
//
// A row needs nothing but its place in the table to be tested. TESSERA_FORCE and
// TESSERA_TEST_DEVICE choose rows as they do in every conformance program; a row that is forced and
// runs nothing is a failure, and where no row quantises every test is skipped by name.
#pragma once

#include <string>

#include "support/case.hpp"
#include "support/quantised_model.hpp"

namespace tessera::test {

/// Whether o and lse are as expected. Where the expectation is NaN or infinite a result must not be
/// finite, and the other way round. Reports the worst element.
bool compare_quantised(const Case& c, const std::string& row, const Results& got,
                       const QuantisedExpectation& e);

/// `check_case` of a case in sage8 or sage4, forward only: every row under test, and the
/// reference's scalar model even if another row is forced.
void check_quantised_case(const Case& given);

/// The same with tensors of the test's own.
void check_quantised_workload(const Case& c, const Workload& w);

}  // namespace tessera::test
