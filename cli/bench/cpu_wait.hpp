// How long this process's threads waited for a CPU while others had it.
#pragma once

#include <cstdint>

namespace tessera::cli::bench {

/// Nanoseconds summed over the threads that live now, since each began.
struct CpuTimes {
  std::int64_t running = 0;
  std::int64_t waiting = 0;  ///< Ready to run, without a CPU.
};

/// Asks Linux (/proc/self/task/*/schedstat); zeros where it does not tell.
CpuTimes cpu_times();

/// Waiting over running and waiting, from one reading to a later one; 0 if neither grew.
double waiting_share(const CpuTimes& spent);

inline CpuTimes operator-(const CpuTimes& a, const CpuTimes& b) {
  return {a.running - b.running, a.waiting - b.waiting};
}
inline CpuTimes operator+(const CpuTimes& a, const CpuTimes& b) {
  return {a.running + b.running, a.waiting + b.waiting};
}

}  // namespace tessera::cli::bench
