// Cases from files.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "attention_case.hpp"
#include "flags.hpp"
#include "io/file.hpp"
#include "io/safetensors.hpp"

namespace tessera::cli {

/// Maps each file once, however many tensors come from it. Every method throws Error with a message
/// that begins with the flag and the file.
class TensorFiles {
 public:
  /// The tensor that `source` (FILE.npy or FILE.safetensors:NAME) names, as `dtype`.
  HostTensor load(const std::string& flag, const std::string& source, DType dtype);
  /// The tensors of a safetensors file.
  std::vector<std::string> names(const std::string& flag, const std::string& path);
  /// Its dtype as the file has it; f32 for those that DType lacks.
  DType dtype_of(const std::string& flag, const std::string& source);

 private:
  struct OpenFile {
    MappedFile file;
    std::optional<Safetensors> index;
  };

  ArrayView find(const std::string& flag, const std::string& source);
  const Safetensors& index_of(const std::string& flag, const std::string& path);
  OpenFile& open(const std::string& flag, const std::string& path);

  std::map<std::string, OpenFile> files_;
};

/// The case that the flags describe, without gradients. `files` may be used for more of the same.
AttentionCase load_case(const FileFlags& flags, const FeatureFlags& features, TensorFiles& files);

}  // namespace tessera::cli
