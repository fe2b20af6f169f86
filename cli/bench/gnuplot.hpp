// gnuplot as a child process.
#pragma once

#include <string>

namespace tessera::cli::bench {

/// A new folder among the system's temporary files, removed with all that is in it on destruction.
class TemporaryFolder {
 public:
  /// Throws Error if none can be made.
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  /// The path of `name` inside.
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Runs gnuplot on a script in `folder`, without a shell. False if the machine has no gnuplot;
/// throws Error with its first complaint if it fails.
bool run_gnuplot(const std::string& script, const TemporaryFolder& folder);

}  // namespace tessera::cli::bench
