// The cases that `tessera check` runs when none are given.
#pragma once

#include <vector>

#include "generate_case.hpp"

namespace tessera::cli {

struct SuiteCase {
  CaseShape shape;
  Attention attention;
};

/// Small on purpose, and awkward: ragged lengths, odd head dims, every feature at least once.
std::vector<SuiteCase> default_suite(DType dtype);

}  // namespace tessera::cli
