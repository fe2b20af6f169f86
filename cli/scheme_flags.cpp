#include "scheme_flags.hpp"

#include <CLI/CLI.hpp>
#include <array>
#include <limits>
#include <utility>

#include "error.hpp"
#include "flags.hpp"

namespace tessera::cli {
namespace {

/// The enumerator up to `last` that has the name; the first one for none.
template <typename E>
E named(const std::string& name, E last) {
  for (int i = 0; i <= static_cast<int>(last); ++i) {
    if (name == name_of(static_cast<E>(i))) return static_cast<E>(i);
  }
  return E{};
}

Smoothing to_smoothing(const std::string& name) {
  if (name.empty()) return Smoothing::automatic;
  return name == "on" ? Smoothing::on : Smoothing::off;
}

}  // namespace

std::string SchemeFlags::first_given() const {
  const std::array<std::pair<const char*, const std::string*>, 5> all{
      {{"--granularity", &granularity},
       {"--smooth-q", &smooth_q},
       {"--smooth-k", &smooth_k},
       {"--smooth-v", &smooth_v},
       {"--pv", &pv}}};
  for (const auto& [flag, value] : all) {
    if (!value->empty()) return std::string(flag) + " " + *value;
  }
  return "";
}

void add_scheme_flags(CLI::App& command, SchemeFlags& flags) {
  const std::string group = "The scheme of sage8 and sage4";
  const auto choice = [&](const char* flag, std::string& value, std::vector<std::string> names,
                          const char* help) {
    command.add_option(flag, value, help)->check(one_of(std::move(names)))->group(group);
  };
  choice("--granularity", flags.granularity, {"tensor", "block", "warp", "thread", "token"},
         "Which queries, and which keys, share a scale (default thread)");
  choice("--smooth-q", flags.smooth_q, {"none", "tensor", "block"},
         "Mean subtracted from Q: of the sequence, of each 128 queries (default none for sage8, "
         "tensor for sage4)");
  choice("--smooth-k", flags.smooth_k, {"on", "off"}, "Subtract K's mean (default on)");
  choice("--smooth-v", flags.smooth_v, {"on", "off"}, "Subtract V's mean (default off)");
  choice("--pv", flags.pv, {"fp8", "half"}, "What P and V are multiplied in (default fp8)");
}

Quantization to_quantization(const SchemeFlags& flags) {
  Quantization q;
  q.granularity = named(flags.granularity, ScaleGranularity::token);
  q.smooth_q = named(flags.smooth_q, SmoothQ::block);
  q.smooth_k = to_smoothing(flags.smooth_k);
  q.smooth_v = to_smoothing(flags.smooth_v);
  q.pv = named(flags.pv, PvFormat::half);
  return q;
}

Precision to_precision(const std::string& name) { return named(name, Precision::adaptive); }

void add_precision_flags(CLI::App& command, PrecisionFlags& flags) {
  const std::string group = "Precision";
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  command.add_option("--precision", flags.precision, "Of the two matrix products (default exact)")
      ->check(one_of({"exact", "sage8", "sage4", "adaptive"}))
      ->group(group);
  command.add_option("--plan", flags.plan, "adaptive: the plan that tessera calibrate has made")
      ->type_name("FILE")
      ->group(group);
  command.add_option("--layer", flags.layer, "adaptive: the plan's layer")
      ->check(integer(0, kMost))
      ->type_name("N")
      ->group(group);
  command.add_option("--step", flags.step, "adaptive: the plan's step (default 0)")
      ->check(integer(0, kMost))
      ->type_name("N")
      ->group(group);
  add_scheme_flags(command, flags.scheme);
}

void apply_precision(const PrecisionFlags& flags, Attention& attention,
                     std::optional<AdaptivePlan>& plan) {
  attention.precision = to_precision(flags.precision);
  const bool adaptive = attention.precision == Precision::adaptive;
  const std::string piece = flags.scheme.first_given();
  const bool quantised =
      attention.precision == Precision::sage8 || attention.precision == Precision::sage4;
  if (!piece.empty() && !quantised) fail("{}: expected --precision sage8 or sage4 with it", piece);
  attention.quantization = to_quantization(flags.scheme);
  if (!adaptive) {
    if (!flags.plan.empty()) fail("--plan {}: expected --precision adaptive with it", flags.plan);
    if (flags.layer) fail("--layer {}: expected --precision adaptive with it", *flags.layer);
    if (flags.step) fail("--step {}: expected --precision adaptive with it", *flags.step);
    return;
  }
  if (flags.plan.empty()) fail("--plan: absent, expected a plan of tessera calibrate");
  if (!flags.layer) fail("--layer: absent, expected a layer of the plan");
  Result<AdaptivePlan> loaded = AdaptivePlan::load(flags.plan);
  if (!loaded.ok()) fail("--plan {}", loaded.status().message());
  plan.emplace(std::move(loaded).value());
  attention.adaptive_plan = &*plan;
  attention.layer = *flags.layer;
  attention.step = flags.step.value_or(0);
}

}  // namespace tessera::cli
