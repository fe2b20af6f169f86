// Which rows the environment asks for, and what became of each.
#pragma once

#include <map>
#include <string>

namespace tessera::test {

struct RowCount {
  int cases = 0, backward = 0, refused = 0, failed = 0;
};

/// By the row's name; printed when a test program ends.
std::map<std::string, RowCount>& counts();

/// TESSERA_FORCE, or an empty string.
const std::string& forced_row();

/// Has every test of the program skipped by name, unless `reason` is empty.
void skip_every_test(const std::string& reason);

}  // namespace tessera::test
