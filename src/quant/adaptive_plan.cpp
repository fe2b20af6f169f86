// Reading the plans that `tessera calibrate` writes.
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "core/format.hpp"
#include "quant/plan_format.hpp"
#include "tessera/quant.hpp"

namespace tessera {

using Json = nlohmann::json;

struct AdaptivePlan::State {
  std::string model;
  std::int64_t heads_q = 0, heads_kv = 0, head_dim = 0;
  std::map<std::pair<std::int64_t, std::int64_t>, Choice> entries;
};

namespace {

Status refused(std::string message) {
  return Status(StatusCode::invalid_argument, "adaptive plan: " + std::move(message));
}

/// A member of `object` as T, or what is wrong with it.
template <typename T>
Status read(const Json& object, const char* name, bool (Json::*is)() const, const char* expected,
            T& to) {
  const auto member = object.find(name);
  if (member == object.end()) return refused(formatted("{}: absent, expected {}", name, expected));
  if (!((*member).*is)()) {
    return refused(formatted("{}: {}, expected {}", name, member->dump(), expected));
  }
  to = member->get<T>();
  return {};
}

Status read_integer(const Json& object, const char* name, std::int64_t least, std::int64_t& to) {
  const auto member = object.find(name);
  // Unsigned numbers beyond int64 would wrap.
  const bool fits = member != object.end() && member->is_number_integer() &&
                    (!member->is_number_unsigned() || member->get<std::uint64_t>() <= INT64_MAX);
  if (!fits || member->get<std::int64_t>() < least) {
    return refused(formatted("{}: {}, expected an integer of at least {}", name,
                             member == object.end() ? "absent" : member->dump(), least));
  }
  to = member->get<std::int64_t>();
  return {};
}

/// The enumerator between `first` and `last` that has the name.
template <typename E>
Status read_name(const Json& object, const char* name, E first, E last, E& to) {
  std::string value, names;
  if (Status s = read(object, name, &Json::is_string, "a name", value); !s.ok()) return s;
  for (int i = static_cast<int>(first); i <= static_cast<int>(last); ++i) {
    const E e = static_cast<E>(i);
    if (value == name_of(e)) {
      to = e;
      return {};
    }
    names += (names.empty() ? "" : ", ") + std::string(name_of(e));
  }
  return refused(formatted("{}: {}, expected one of {}", name, value, names));
}

#define TESSERA_PLAN_RETURN_IF_ERROR(expression) \
  if (Status status_ = (expression); !status_.ok()) return status_

Status read_quantization(const Json& object, Quantization& q) {
  TESSERA_PLAN_RETURN_IF_ERROR(read_name(object, "granularity", ScaleGranularity::automatic,
                                         ScaleGranularity::token, q.granularity));
  TESSERA_PLAN_RETURN_IF_ERROR(
      read_name(object, "smooth_q", SmoothQ::automatic, SmoothQ::block, q.smooth_q));
  bool smooth_k = false, smooth_v = false;
  TESSERA_PLAN_RETURN_IF_ERROR(
      read(object, "smooth_k", &Json::is_boolean, "true or false", smooth_k));
  TESSERA_PLAN_RETURN_IF_ERROR(
      read(object, "smooth_v", &Json::is_boolean, "true or false", smooth_v));
  q.smooth_k = smooth_k ? Smoothing::on : Smoothing::off;
  q.smooth_v = smooth_v ? Smoothing::on : Smoothing::off;
  return read_name(object, "pv", PvFormat::automatic, PvFormat::half, q.pv);
}

}  // namespace

Result<AdaptivePlan> AdaptivePlan::parse(const std::string& text, const std::string& model) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return refused("not a JSON object, expected a plan of tessera calibrate");
  std::string format;
  TESSERA_PLAN_RETURN_IF_ERROR(read(json, "format", &Json::is_string, quant::kPlanFormat, format));
  if (format != quant::kPlanFormat) {
    return refused(formatted("format: {}, expected {}", format, quant::kPlanFormat));
  }
  std::int64_t version = 0;
  TESSERA_PLAN_RETURN_IF_ERROR(read_integer(json, "version", 1, version));
  if (version != quant::kPlanVersion) {
    return refused(formatted("version: {}, expected {}", version, quant::kPlanVersion));
  }
  auto state = std::make_shared<State>();
  TESSERA_PLAN_RETURN_IF_ERROR(read(json, "model", &Json::is_string, "a name", state->model));
  if (!model.empty() && state->model != model) {
    return refused(formatted("model: {}, expected {}", state->model, model));
  }
  TESSERA_PLAN_RETURN_IF_ERROR(read_integer(json, "heads_q", 1, state->heads_q));
  TESSERA_PLAN_RETURN_IF_ERROR(read_integer(json, "heads_kv", 1, state->heads_kv));
  TESSERA_PLAN_RETURN_IF_ERROR(read_integer(json, "head_dim", 1, state->head_dim));
  Json pieces, entries;
  TESSERA_PLAN_RETURN_IF_ERROR(read(json, "quantization", &Json::is_object, "an object", pieces));
  Quantization quantization;
  TESSERA_PLAN_RETURN_IF_ERROR(read_quantization(pieces, quantization));
  TESSERA_PLAN_RETURN_IF_ERROR(read(json, "entries", &Json::is_array, "an array", entries));
  for (const Json& entry : entries) {
    if (!entry.is_object()) {
      return refused(formatted("entries: {}, expected objects", entry.dump()));
    }
    std::int64_t layer = 0, step = 0;
    Choice choice;
    TESSERA_PLAN_RETURN_IF_ERROR(read_integer(entry, "layer", 0, layer));
    TESSERA_PLAN_RETURN_IF_ERROR(read_integer(entry, "step", 0, step));
    TESSERA_PLAN_RETURN_IF_ERROR(
        read_name(entry, "precision", Precision::exact, Precision::sage4, choice.precision));
    choice.quantization = quantization;
    if (!state->entries.emplace(std::pair{layer, step}, choice).second) {
      return refused(formatted("entries: layer {} step {} twice, expected once", layer, step));
    }
  }
  return AdaptivePlan(std::move(state));
}

Result<AdaptivePlan> AdaptivePlan::load(const std::string& path, const std::string& model) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) {
    return refused(formatted("path: {}, expected a readable file", path));
  }
  Result<AdaptivePlan> plan = parse(text.str(), model);
  if (plan.ok()) return plan;
  return Status(plan.status().code(), formatted("{}: {}", path, plan.status().message()));
}

const std::string& AdaptivePlan::model() const { return state_->model; }
std::int64_t AdaptivePlan::heads_q() const { return state_->heads_q; }
std::int64_t AdaptivePlan::heads_kv() const { return state_->heads_kv; }
std::int64_t AdaptivePlan::head_dim() const { return state_->head_dim; }

Result<AdaptivePlan::Choice> AdaptivePlan::choose(std::int64_t layer, std::int64_t step) const {
  const auto entry = state_->entries.find({layer, step});
  if (entry != state_->entries.end()) return entry->second;
  return refused(formatted("layer {} step {}, expected one of its {} entries for model {}", layer,
                           step, state_->entries.size(), state_->model));
}

}  // namespace tessera
