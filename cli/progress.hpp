// A progress bar on a terminal.
#pragma once

#include <string>

namespace tessera::cli {

/// One line on standard error that is drawn over as work goes on, and erased on destruction.
/// Nothing at all where standard error is not a terminal.
class ProgressBar {
 public:
  explicit ProgressBar(int total);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// Another of the `total` steps begins; `label` says which.
  void step(const std::string& label);
  /// Takes the line away until the next step, to print something else.
  void erase();

 private:
  bool visible_;
  int total_;
  int begun_ = 0;
};

}  // namespace tessera::cli
