#include "samples.hpp"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "error.hpp"

namespace tessera::cli {
namespace {

constexpr std::string_view kSafetensors = ".safetensors";
constexpr std::string_view kNpy = ".npy";

/// "NAME." of NAME.q, NAME.k or NAME.v, and "" of q, k or v; nothing for other names.
std::optional<std::string> prefix_of(std::string_view name) {
  if (name.empty() || std::string_view("qkv").find(name.back()) == std::string_view::npos) {
    return std::nullopt;
  }
  name.remove_suffix(1);
  const bool whole = name.empty() || name.ends_with('.') || name.ends_with('/');
  return whole ? std::optional(std::string(name)) : std::nullopt;
}

std::string without_dot(std::string prefix) {
  if (prefix.ends_with('.')) prefix.pop_back();
  return prefix;
}

void add_from_safetensors(const std::string& flag, const std::string& path, TensorFiles& files,
                          std::vector<Sample>& samples) {
  const std::vector<std::string> names = files.names(flag, path);
  std::set<std::string> seen;
  for (const std::string& tensor : names) {
    const std::optional<std::string> prefix = prefix_of(tensor);
    if (!prefix || !seen.insert(*prefix).second) continue;
    for (const char* part : {"q", "k", "v"}) {
      const std::string wanted = *prefix + part;
      if (std::find(names.begin(), names.end(), wanted) == names.end()) {
        fail("{} {}: no tensor '{}', expected it beside '{}'", flag, path, wanted, tensor);
      }
    }
    samples.push_back({without_dot(*prefix), path, path + ":" + *prefix, ""});
  }
  if (seen.empty()) {
    fail("{} {}: no samples, expected tensors NAME.q, NAME.k and NAME.v", flag, path);
  }
}

void add_from_npy(const std::string& flag, const std::string& path, std::vector<Sample>& samples) {
  const std::string_view tensor = std::string_view(path).substr(0, path.size() - kNpy.size());
  const std::optional<std::string> prefix = prefix_of(tensor);
  if (!prefix) fail("{} {}: expected NAME.q.npy, NAME.k.npy or NAME.v.npy", flag, path);
  const auto same = [&](const Sample& sample) {
    return !sample.suffix.empty() && sample.prefix == *prefix;
  };
  if (std::any_of(samples.begin(), samples.end(), same)) return;
  for (const char* part : {"q.npy", "k.npy", "v.npy"}) {
    if (!std::filesystem::exists(*prefix + part)) {
      fail("{} {}: no file {}, expected it beside the other two", flag, path, *prefix + part);
    }
  }
  const std::string name = std::filesystem::path(*prefix).filename().string();
  samples.push_back({without_dot(name), path, *prefix, std::string(kNpy)});
}

}  // namespace

std::vector<Sample> find_samples(const std::string& flag, const std::vector<std::string>& paths,
                                 TensorFiles& files) {
  std::vector<Sample> samples;
  for (const std::string& path : paths) {
    if (path.ends_with(kSafetensors)) {
      add_from_safetensors(flag, path, files, samples);
    } else if (path.ends_with(kNpy)) {
      add_from_npy(flag, path, samples);
    } else {
      fail("{} {}: expected FILE.safetensors or NAME.q.npy", flag, path);
    }
  }
  return samples;
}

AttentionCase load_sample(const std::string& flag, const Sample& sample, const std::string& layout,
                          const std::string& dtype, TensorFiles& files) {
  const DType as = dtype.empty() ? files.dtype_of(flag, sample.source_of("q")) : to_dtype(dtype);
  if (as == DType::f64) {
    fail("{} {}: dtype f64, expected --dtype f32, f16 or bf16", flag, sample.source_of("q"));
  }
  AttentionCase c;
  c.name = sample.name;
  if (sample.suffix.empty()) {  // NAME says nothing of the file
    const std::string file = std::filesystem::path(sample.file).stem().string();
    c.name = file + (sample.name.empty() ? "" : " ") + sample.name;
  }
  c.bshd = layout == "bshd";
  c.q = files.load(flag, sample.source_of("q"), as);
  c.k = files.load(flag, sample.source_of("k"), as);
  c.v = files.load(flag, sample.source_of("v"), as);
  for (const auto& [tensor, part] : {std::pair{&c.q, "q"}, {&c.k, "k"}, {&c.v, "v"}}) {
    if (tensor->rank() != 4) {
      fail("{} {}: shape {}, expected 4 dimensions", flag, sample.source_of(part),
           sizes_to_string(tensor->sizes()));
    }
  }
  return c;
}

}  // namespace tessera::cli
