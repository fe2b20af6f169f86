#include "plans.hpp"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <system_error>
#include <unordered_map>

#include "tensors.hpp"

namespace tessera_torch {
namespace {

constexpr size_t kMostPlans = 1024;

/// All that a plan depends on, as bytes.
class Key {
 public:
  template <typename T>
  void add(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }

  void add_text(const char* text) {
    if (text != nullptr) bytes_.append(text);
    bytes_.push_back('\0');
  }

  void add_tensor(const tessera_tensor* tensor) {
    if (tensor == nullptr) {
      add(int32_t{-1});
      return;
    }
    add(tensor->rank);
    add(tensor->dtype);
    add(tensor->device_type);
    add(tensor->device_index);
    add(tensor->size);
  }

  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_ = [] {
    std::string bytes;
    bytes.reserve(512);
    return bytes;
  }();
};

std::string key_of(const tessera_attention& attention, const tessera_inputs& inputs,
                   const tessera_plan_options& options) {
  Key key;
  key.add(attention);  // without padding
  for (const tessera_tensor* tensor :
       {inputs.q, inputs.k, inputs.v, inputs.bias, inputs.mask, inputs.alibi_slopes, inputs.sink,
        inputs.q_lens, inputs.kv_lens, inputs.cu_seqlens_q, inputs.cu_seqlens_k}) {
    key.add_tensor(tensor);
  }
  if (const tessera_block_mask_view* mask = inputs.block_mask; mask != nullptr) {
    for (int64_t size : {mask->batch, mask->heads, mask->seq_q, mask->seq_kv, mask->block_q,
                         mask->block_kv, mask->entries, mask->partial_blocks}) {
      key.add(size);
    }
    key.add(mask->device_type);
    key.add(mask->device_index);
  }
  key.add(options.passes);
  key.add(options.bias_gradient);
  key.add(options.sink_gradient);
  key.add(options.threads);
  key.add_text(options.implementation);
  key.add_text(std::getenv("TESSERA_FORCE"));
  return key.take();
}

}  // namespace

PlannedPass::PlannedPass(const tessera_attention& attention, const tessera_inputs& inputs,
                         const tessera_plan_options& options) {
  check(tessera_plan_create(&attention, &inputs, &options, &plan_));
  const bool forward = options.passes == TESSERA_FORWARD;
  check(tessera_plan_workspace_bytes(plan_, forward ? &workspace_bytes_ : nullptr,
                                     forward ? nullptr : &workspace_bytes_));
}

std::shared_ptr<const PlannedPass> find_plan(const tessera_attention& attention,
                                             const tessera_inputs& inputs,
                                             const tessera_plan_options& options) {
  static std::mutex mutex;
  static auto& plans = *new std::unordered_map<std::string, std::shared_ptr<const PlannedPass>>;
  std::string key = key_of(attention, inputs, options);
  {
    const std::lock_guard lock(mutex);
    if (const auto found = plans.find(key); found != plans.end()) return found->second;
  }
  auto made = std::make_shared<const PlannedPass>(attention, inputs, options);
  const std::lock_guard lock(mutex);
  if (plans.size() >= kMostPlans) plans.clear();
  plans.emplace(std::move(key), made);
  return made;
}

const tessera_adaptive_plan* find_adaptive_plan(const std::string& path) {
  struct Kept {
    std::filesystem::file_time_type written;
    const tessera_adaptive_plan* plan;
  };
  static std::mutex mutex;
  static auto& kept = *new std::unordered_map<std::string, Kept>;
  std::error_code missing;  // which loading reports
  const auto written = std::filesystem::last_write_time(path, missing);
  const std::lock_guard lock(mutex);
  if (const auto found = kept.find(path); found != kept.end() && found->second.written == written) {
    return found->second.plan;
  }
  tessera_adaptive_plan* plan = nullptr;
  check(tessera_adaptive_plan_load(path.c_str(), nullptr, &plan));
  kept.insert_or_assign(path, Kept{written, plan});
  return plan;
}

}  // namespace tessera_torch
