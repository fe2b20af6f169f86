// Files as the commands use them: mapped to read, replaced as a whole to write.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "host_tensor.hpp"

namespace tessera::cli {

/// A regular file's bytes, mapped read-only until destruction. Throws Error if it cannot be opened,
/// is not a regular file or cannot be mapped.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  MappedFile& operator=(MappedFile&&) = delete;

  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(memory_), bytes_};
  }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

/// A file to be written: first to a temporary file beside the target (`write`), which then takes
/// the target's name in one step (`commit`). Destruction without commit leaves the target as it
/// was. A symbolic link's target is what is replaced.
class OutputFile {
 public:
  /// Throws Error, naming `argument` (the flag), unless a file could be written at `path` now.
  OutputFile(std::string argument, std::string path);
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  OutputFile& operator=(OutputFile&&) = delete;

  const std::string& path() const { return path_; }
  /// The absolute path that `commit` gives the file, links followed: equal for equal files.
  const std::string& target() const { return target_; }

  void write(std::span<const std::span<const std::byte>> pieces);
  void commit();

 private:
  std::string argument_;
  std::string path_;
  std::string target_;     // path_, absolute and with symbolic links followed
  std::string temporary_;  // exists while not empty
};

/// Writes `tensor` to `file` in .npy format (bf16 as f32, which holds it exactly); commit follows.
void write_npy(OutputFile& file, const HostTensor& tensor);

}  // namespace tessera::cli
