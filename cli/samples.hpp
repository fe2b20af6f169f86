// Activations in files: q, k and v of layers of a model.
#pragma once

#include <string>
#include <vector>

#include "attention_case.hpp"
#include "load_case.hpp"

namespace tessera::cli {

/// q, k and v that belong together: the tensors NAME.q, NAME.k and NAME.v of a safetensors file, or
/// the files NAME.q.npy, NAME.k.npy and NAME.v.npy; without a NAME q, k and v.
struct Sample {
  std::string name;    ///< NAME, without folders; may be empty.
  std::string file;    ///< The path that led to it.
  std::string prefix;  ///< What stands before q, k and v, "FILE.safetensors:NAME." say,
  std::string suffix;  ///< and behind: ".npy" or nothing.

  std::string source() const {
    return prefix.ends_with('.') ? prefix.substr(0, prefix.size() - 1) : prefix;
  }
  std::string source_of(const char* tensor) const { return prefix + tensor + suffix; }
};

/// All samples of the paths FILE.safetensors and FILE.npy, in the order of paths and names. Tensors
/// of other names are passed over. Throws Error, naming `flag`, for a path of another kind, one
/// without samples, and a sample that is not complete.
std::vector<Sample> find_samples(const std::string& flag, const std::vector<std::string>& paths,
                                 TensorFiles& files);

/// q, k and v as `dtype`, or as q's own if that is empty. f64 is refused: nothing quantises it.
AttentionCase load_sample(const std::string& flag, const Sample& sample, const std::string& layout,
                          const std::string& dtype, TensorFiles& files);

}  // namespace tessera::cli
