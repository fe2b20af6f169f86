// The whole command line as one function.
#pragma once

namespace tessera::cli {

inline constexpr int kGood = 0;
inline constexpr int kCheckFailed = 1;
inline constexpr int kBadInput = 2;

/// Parses `argv`, runs the command it names and returns the process's exit code: kGood,
/// kCheckFailed or kBadInput. Whatever is wrong is told in one line on standard error.
int run_app(int argc, const char* const* argv);

}  // namespace tessera::cli
