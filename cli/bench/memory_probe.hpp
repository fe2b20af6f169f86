// The process's peak memory, as the kernel counts it.
#pragma once

#include <cstdint>
#include <optional>

namespace tessera::cli::bench {

/// Watches how far the process's resident memory rises above where it stood at construction, by
/// resetting and reading Linux's high-water mark (VmHWM); steps of about 100 kB escape it. Only one
/// at a time.
class MemoryProbe {
 public:
  MemoryProbe();

  /// Bytes of the highest rise so far; nothing where the system does not tell.
  std::optional<std::int64_t> peak_bytes() const;

 private:
  std::optional<std::int64_t> start_;
};

/// Bytes of memory that could be allocated now without swapping (MemAvailable), or nothing.
std::optional<std::int64_t> available_memory();

}  // namespace tessera::cli::bench
