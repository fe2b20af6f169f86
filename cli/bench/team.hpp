// Threads that start a short measurement at the same moment, each on a CPU of its own.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tessera::cli::bench {

/// A fixed number of sleeping threads. Bursts of a millisecond are over before a scheduler has
/// spread new threads over the CPUs, so these stay alive and each is tied to one CPU.
class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return static_cast<int>(members_.size()); }

  /// Calls `task(index)` on every thread at once and returns the seconds from the first start to
  /// the last end. `task` does not throw.
  double run(const std::function<void(int)>& task);

 private:
  struct Call;
  void work(int index);

  std::mutex mutex_;
  std::condition_variable changed_;
  Call* call_ = nullptr;
  long calls_ = 0;
  bool ending_ = false;
  std::vector<std::thread> members_;
};

}  // namespace tessera::cli::bench
