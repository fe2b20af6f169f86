#include "samples.hpp"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "error.hpp"

namespace tessera::cli {
namespace {

constexpr std::string_view kSafetensors = ".safetensors";
constexpr std::string_view kNpy = ".npy";

/// NAME of NAME.q, NAME.k or NAME.v; empty for other names.
std::string sample_of(std::string_view name) {
  for (std::string_view suffix : {".q", ".k", ".v"}) {
    if (name.size() > suffix.size() && name.ends_with(suffix)) {
      return std::string(name.substr(0, name.size() - suffix.size()));
    }
  }
  return "";
}

void add_from_safetensors(const std::string& flag, const std::string& path, TensorFiles& files,
                          std::vector<Sample>& samples) {
  const std::vector<std::string> names = files.names(flag, path);
  const std::size_t before = samples.size();
  for (const std::string& tensor : names) {
    const std::string name = sample_of(tensor);
    if (name.empty() || (samples.size() > before && samples.back().name == name)) continue;
    for (const char* part : {"q", "k", "v"}) {
      const std::string wanted = name + "." + part;
      if (std::find(names.begin(), names.end(), wanted) == names.end()) {
        fail("{} {}: no tensor '{}', expected it beside '{}'", flag, path, wanted, tensor);
      }
    }
    samples.push_back({name, path, path + ":" + name, false});
  }
  if (samples.size() == before) {
    fail("{} {}: no samples, expected tensors NAME.q, NAME.k and NAME.v", flag, path);
  }
}

void add_from_npy(const std::string& flag, const std::string& path, std::vector<Sample>& samples) {
  const std::string source = sample_of(std::string_view(path).substr(0, path.size() - kNpy.size()));
  if (source.empty()) fail("{} {}: expected NAME.q.npy, NAME.k.npy or NAME.v.npy", flag, path);
  const auto same = [&](const Sample& sample) { return sample.npy && sample.source == source; };
  if (std::any_of(samples.begin(), samples.end(), same)) return;
  for (const char* part : {".q.npy", ".k.npy", ".v.npy"}) {
    if (!std::filesystem::exists(source + part)) {
      fail("{} {}: no file {}, expected it beside the other two", flag, path, source + part);
    }
  }
  samples.push_back({std::filesystem::path(source).filename().string(), path, source, true});
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
