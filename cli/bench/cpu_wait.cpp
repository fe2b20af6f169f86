#include "bench/cpu_wait.hpp"

#include <filesystem>
#include <fstream>
#include <system_error>

namespace tessera::cli::bench {

CpuTimes cpu_times() {
  CpuTimes sum;
  std::error_code error;
  for (std::filesystem::directory_iterator task("/proc/self/task", error), end;
       !error && task != end; task.increment(error)) {
    std::ifstream file(task->path() / "schedstat");
    CpuTimes one;
    if (file >> one.running >> one.waiting) sum = sum + one;
  }
  return sum;
}

double waiting_share(const CpuTimes& spent) {
  const std::int64_t total = spent.running + spent.waiting;
  return total > 0 ? static_cast<double>(spent.waiting) / static_cast<double>(total) : 0;
}

}  // namespace tessera::cli::bench
