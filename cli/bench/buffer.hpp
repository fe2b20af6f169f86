// Memory straight from the system, so that what a measurement allocates is new to the process.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace tessera::cli::bench {

/// Zeroed pages that enter the process's memory when they are first written and leave it on
/// destruction. Throws std::bad_alloc.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes_ == 0) return;
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
  }
  ~Buffer() {
    if (bytes_ > 0) munmap(memory_, bytes_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::size_t bytes() const { return bytes_; }
  void* data() const { return memory_; }
  float* floats() const { return static_cast<float*>(memory_); }

 private:
  std::size_t bytes_;
  void* memory_ = nullptr;
};

}  // namespace tessera::cli::bench
