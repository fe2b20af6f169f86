#include "bench/memory_probe.hpp"

#include <algorithm>
#include <fstream>
#include <string>
#include <string_view>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace tessera::cli::bench {
namespace {

// The value of a line "name:   1234 kB" in bytes.
std::optional<std::int64_t> kilobytes_line(const char* path, std::string_view name) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, name.size(), name) == 0) {
      return std::stoll(line.substr(name.size())) * 1024;
    }
  }
  return std::nullopt;
}

}  // namespace

MemoryProbe::MemoryProbe() {
#ifdef __GLIBC__
  malloc_trim(0);  // free memory that the allocator kept would be used again unseen
#endif
  std::ofstream clear("/proc/self/clear_refs");
  clear << '5';
  clear.flush();
  if (clear.good()) start_ = kilobytes_line("/proc/self/status", "VmRSS:");
}

std::optional<std::int64_t> MemoryProbe::peak_bytes() const {
  const std::optional<std::int64_t> peak = kilobytes_line("/proc/self/status", "VmHWM:");
  if (!start_ || !peak) return std::nullopt;
  return std::max<std::int64_t>(0, *peak - *start_);
}

std::optional<std::int64_t> available_memory() {
  return kilobytes_line("/proc/meminfo", "MemAvailable:");
}

}  // namespace tessera::cli::bench
