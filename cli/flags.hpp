// The flags that commands share, in groups, as plain values.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/attention.hpp"

namespace CLI {
class App;
class Validator;
}  // namespace CLI

namespace tessera::cli {

/// Validators whose message names the value and what was expected.
CLI::Validator integer(std::int64_t low, std::int64_t high);
CLI::Validator number();
CLI::Validator one_of(std::vector<std::string> names);

/// What to compute.
struct FeatureFlags {
  std::optional<double> scale;
  std::string causal;     ///< "", "bottom-right" or "top-left".
  std::string alignment;  ///< "", "bottom-right" or "top-left".
  std::string window;     ///< "" or "L,R".
  double softcap = 0;
  double dropout = 0;
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;
  std::string block_size;  ///< "", "M" or "M,N".
  bool deterministic = false;

  /// Whether any but --seed and --offset differs from its default.
  bool given() const;
};
void add_feature_flags(CLI::App& command, FeatureFlags& flags);

/// Throws Error for flags that contradict one another or cannot be read.
Attention to_attention(const FeatureFlags& flags);

/// --block-size; 128 by 128 without it.
struct BlockSize {
  std::int64_t q = 128;
  std::int64_t kv = 128;
};
BlockSize to_block_size(const FeatureFlags& flags);

/// Where the tensors are: .npy files, or FILE.safetensors:NAME.
struct FileFlags {
  std::string q, k, v;
  std::string layout = "bhsd";
  std::string dtype;  ///< "": q's own.
  std::string bias, mask, alibi, sink;
  std::string q_lens, kv_lens, cu_seqlens_q, cu_seqlens_k;
  std::string block_mask;

  /// Whether any names a file.
  bool given() const;
};
void add_file_flags(CLI::App& command, FileFlags& flags);

/// Sizes of generated or merely described tensors.
struct ShapeFlags {
  std::optional<std::int64_t> batch, heads, heads_kv, seq, seq_kv, head_dim, head_dim_v;
  std::vector<std::string> with;
  std::optional<double> density;

  bool given() const;
};
void add_shape_flags(CLI::App& command, ShapeFlags& flags);

/// Where and how to run.
struct PlaceFlags {
  std::string device = "cpu";
  int threads = 0;
  std::string implementation;
};
void add_place_flags(CLI::App& command, PlaceFlags& flags, bool with_implementation = true);

/// --device: "cpu", "cuda" or "cuda:N". Throws Error unless this build and machine have it.
Device to_device(const std::string& name);

/// A pool of --threads threads; null, which means the default one, without the flag.
std::unique_ptr<Executor> make_executor(const PlaceFlags& flags);

/// A dtype's name to the dtype.
DType to_dtype(const std::string& name);

}  // namespace tessera::cli
