// The safetensors format: an 8-byte little-endian header length, a JSON header, the tensors' bytes.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/array.hpp"
#include "tessera/status.hpp"

namespace tessera::cli {

/// The index of a safetensors file whose bytes it refers to.
class Safetensors {
 public:
  /// Reads the header of a whole file's bytes. Every length and offset is checked: tensors lie in
  /// the file, do not overlap, leave no holes, and are as long as their dtype and shape say. Names
  /// and fields are unique; the header is UTF-8 JSON of exactly the format's form.
  static Result<Safetensors> parse(std::span<const std::byte> file);

  /// Tensor `name`. One that is not there, or of a dtype other than F16, BF16, F32, F64, I32, I64,
  /// BOOL and U8, is an error.
  Result<ArrayView> tensor(const std::string& name) const;

  std::vector<std::string> names() const;

 private:
  struct Entry {
    std::string dtype;
    ArrayView array;  // its type is meaningful only if dtype is one that we read
  };

  std::map<std::string, Entry> entries_;
};

}  // namespace tessera::cli
