// The records as a table for people.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/record.hpp"

namespace tessera::cli::bench {

/// Some lines about the machine, to stand above the tables.
std::string heading(const Machine& machine);

/// One line per record in aligned columns; columns that no record fills are left out.
std::string table(const std::vector<Record>& records);

/// A line that says so if other programs took CPU time from the runs; else "".
std::string disturbance(const std::vector<Record>& records);

/// "0.0831", "12.35", "1234": milliseconds with four digits at most.
std::string format_ms(double ms);
/// "512 B", "1.5 MiB", "12 GiB".
std::string format_bytes(std::int64_t bytes);

}  // namespace tessera::cli::bench
