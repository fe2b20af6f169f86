// tessera explain: which row would run, and why each earlier one was passed over.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "attention_case.hpp"
#include "commands.hpp"
#include "device_tensors.hpp"
#include "error.hpp"
#include "flags.hpp"
#include "generate_case.hpp"
#include "load_case.hpp"
#include "scheme_flags.hpp"

namespace tessera::cli {
namespace {

struct ExplainFlags {
  FileFlags files;
  FeatureFlags features;
  PrecisionFlags precision;
  ShapeFlags shape;
  PlaceFlags place;
  bool backward = false;
};

PlanOptions options_for(const ExplainFlags& flags, const Inputs& inputs, Executor* executor) {
  PlanOptions options;
  options.backward = flags.backward;
  options.bias_gradient = flags.backward && inputs.bias.present();
  options.sink_gradient = flags.backward && inputs.sink.present();
  options.implementation = flags.place.implementation;
  options.executor = executor;
  return options;
}

void explain(const ExplainFlags& flags) {
  const Device device = to_device(flags.place.device);
  const std::unique_ptr<Executor> executor = make_executor(flags.place);
  AttentionCase c;
  BlockMaskView block_mask;
  Inputs inputs;
  if (flags.files.given()) {
    if (flags.shape.given()) fail("--q {}: expected either files or a shape", flags.files.q);
    TensorFiles files;
    c = load_case(flags.files, flags.features, files);
    inputs = c.inputs();
  } else {
    const DType dtype = flags.files.dtype.empty() ? DType::f32 : to_dtype(flags.files.dtype);
    const CaseShape shape = to_case_shape(flags.shape, flags.features, flags.files.layout, dtype);
    inputs = describe_case(shape, block_mask);
    c.attention = to_attention(flags.features);
  }
  std::optional<AdaptivePlan> adaptive;
  apply_precision(flags.precision, c.attention, adaptive);
  BlockMaskView block_mask_there;
  inputs = described_on(device, inputs, block_mask_there);
  const Plan plan =
      require(Plan::create(c.attention, inputs, options_for(flags, inputs, executor.get())));
  fmt::print("{}", plan.explain());
}

}  // namespace

void add_explain_command(CLI::App& app, int&) {
  CLI::App* command = app.add_subcommand(
      "explain", "Say which row of the table and which config would run, and why");
  const auto flags = std::make_shared<ExplainFlags>();
  add_shape_flags(*command, flags->shape);
  add_file_flags(*command, flags->files);
  add_feature_flags(*command, flags->features);
  add_precision_flags(*command, flags->precision);
  add_place_flags(*command, flags->place);
  command->add_flag("--backward", flags->backward, "Explain the backward pass, too");
  command->footer(
      "Nothing is computed, so shapes may be larger than this machine's memory.\n"
      "Example:\n"
      "  tessera explain -B 2 --heads 32 --heads-kv 8 --seq 65536 --head-dim 128 --dtype bf16 \\\n"
      "                  --causal --backward");
  command->callback([flags] { explain(*flags); });
}

}  // namespace tessera::cli
