// Runs the tessera program and keeps what it printed.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cli/temporary_folder.hpp"

namespace tessera::cli::test {

struct Outcome {
  int exit_code = -1;  ///< 128 + signal if it was killed.
  std::string out, err;

  /// Whether standard error holds exactly one line, the program's own.
  bool one_error_line() const {
    return err.starts_with("tessera: ") && std::count(err.begin(), err.end(), '\n') == 1 &&
           err.back() == '\n';
  }
};

inline Outcome run_tessera(const std::vector<std::string>& arguments) {
  const TemporaryFolder folder;
  const std::string out = folder / "out";
  const std::string err = folder / "err";
  std::vector<std::string> words = {TESSERA_CLI};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    const int flags = O_CREAT | O_WRONLY | O_TRUNC;
    if (::dup2(::open("/dev/null", O_RDONLY), 0) < 0 ||
        ::dup2(::open(out.c_str(), flags, 0600), 1) < 0 ||
        ::dup2(::open(err.c_str(), flags, 0600), 2) < 0) {
      ::_exit(127);
    }
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  if (::waitpid(child, &status, 0) != child) throw std::runtime_error("waitpid failed");
  Outcome outcome;
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  outcome.out = read_file(out);
  outcome.err = read_file(err);
  return outcome;
}

}  // namespace tessera::cli::test
