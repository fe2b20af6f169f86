// tessera run: attention over files.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <array>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "attention_case.hpp"
#include "commands.hpp"
#include "error.hpp"
#include "flags.hpp"
#include "io/file.hpp"
#include "load_case.hpp"
#include "planned_case.hpp"
#include "scheme_flags.hpp"

namespace tessera::cli {
namespace {

struct OutputFlags {
  std::string out, lse;
  std::string d_out, d_lse;
  std::string d_q, d_k, d_v, d_bias, d_sink;
};

struct RunFlags {
  FileFlags files;
  FeatureFlags features;
  PrecisionFlags precision;
  PlaceFlags place;
  OutputFlags outputs;
};

struct NamedOutput {
  const char* flag;
  std::string OutputFlags::*path;
  HostTensor Results::*tensor;
};
constexpr std::array kForwardOutputs = {NamedOutput{"--out", &OutputFlags::out, &Results::o},
                                        NamedOutput{"--lse", &OutputFlags::lse, &Results::lse}};
constexpr std::array kBackwardOutputs = {
    NamedOutput{"--dq", &OutputFlags::d_q, &Results::d_q},
    NamedOutput{"--dk", &OutputFlags::d_k, &Results::d_k},
    NamedOutput{"--dv", &OutputFlags::d_v, &Results::d_v},
    NamedOutput{"--dbias", &OutputFlags::d_bias, &Results::d_bias},
    NamedOutput{"--dsink", &OutputFlags::d_sink, &Results::d_sink}};

void add_output_flags(CLI::App& command, OutputFlags& flags) {
  const auto file = [&](const char* group) {
    return [&command, group](const char* flag, std::string& value, const char* help) {
      command.add_option(flag, value, help)->type_name("FILE")->group(group);
    };
  };
  const auto forward = file("Forward outputs: FILE.npy, bf16 as f32");
  forward("--out", flags.out, "O, in q's layout");
  forward("--lse", flags.lse, "Log-sum-exp of each row's scores, f32 [B,Hq,Sq]; [Hq,Tq] packed");
  const auto backward = file("Backward pass");
  backward("--dout", flags.d_out, "Gradient of O, shaped as O: asks for a backward pass");
  backward("--dlse", flags.d_lse, "Gradient of the LSE");
  backward("--dq", flags.d_q, "Output: gradient of q");
  backward("--dk", flags.d_k, "Output: gradient of k");
  backward("--dv", flags.d_v, "Output: gradient of v");
  backward("--dbias", flags.d_bias, "Output: gradient of --bias, shaped as it");
  backward("--dsink", flags.d_sink, "Output: gradient of --sink");
}

void check_outputs(const RunFlags& flags) {
  const OutputFlags& outputs = flags.outputs;
  bool gradients = false;
  for (const NamedOutput& output : kBackwardOutputs) {
    const std::string& path = outputs.*output.path;
    if (path.empty()) continue;
    gradients = true;
    if (outputs.d_out.empty()) fail("{} {}: expected --dout to go with it", output.flag, path);
  }
  if (!outputs.d_lse.empty() && outputs.d_out.empty()) {
    fail("--dlse {}: expected --dout to go with it", outputs.d_lse);
  }
  if (!outputs.d_out.empty() && !gradients) {
    fail("--dout {}: expected --dq, --dk, --dv, --dbias or --dsink to go with it", outputs.d_out);
  }
  if (outputs.out.empty() && outputs.lse.empty() && !gradients) {
    fail("--out: absent, expected a file for a result");
  }
  if (!outputs.d_bias.empty() && flags.files.bias.empty()) {
    fail("--dbias {}: expected --bias to go with it", outputs.d_bias);
  }
  if (!outputs.d_sink.empty() && flags.files.sink.empty()) {
    fail("--dsink {}: expected --sink to go with it", outputs.d_sink);
  }
}

struct PendingOutput {
  OutputFile file;
  HostTensor Results::*tensor;
};

// Opened before any work: an output that cannot be written is known at once.
std::vector<PendingOutput> open_outputs(const OutputFlags& flags) {
  std::vector<PendingOutput> pending;
  std::set<std::string> targets;
  const auto open = [&](const NamedOutput& output) {
    const std::string& path = flags.*output.path;
    if (path.empty()) return;
    OutputFile file(output.flag, path);
    if (!targets.insert(file.target()).second) {
      fail("{} {}: expected a file of its own for each output", output.flag, path);
    }
    pending.push_back({std::move(file), output.tensor});
  };
  for (const NamedOutput& output : kForwardOutputs) open(output);
  for (const NamedOutput& output : kBackwardOutputs) open(output);
  return pending;
}

void load_gradients(const OutputFlags& flags, AttentionCase& c, TensorFiles& files) {
  if (flags.d_out.empty()) return;
  c.d_o = files.load("--dout", flags.d_out, c.q.dtype());
  if (!flags.d_lse.empty()) c.d_lse = files.load("--dlse", flags.d_lse, c.lse_dtype());
}

// All outputs are complete on disk before the first takes its name.
void write_outputs(std::vector<PendingOutput>& pending, const Results& results) {
  for (PendingOutput& output : pending) write_npy(output.file, results.*output.tensor);
  for (PendingOutput& output : pending) {
    output.file.commit();
    const HostTensor& tensor = results.*output.tensor;
    fmt::print("wrote     {}  {} {}\n", output.file.path(), name_of(tensor.dtype()),
               sizes_to_string(tensor.sizes()));
  }
}

void run(const RunFlags& flags) {
  check_outputs(flags);
  const Device device = to_device(flags.place.device);
  TensorFiles files;
  AttentionCase c = load_case(flags.files, flags.features, files);
  std::optional<AdaptivePlan> plan;
  apply_precision(flags.precision, c.attention, plan);
  load_gradients(flags.outputs, c, files);
  std::vector<PendingOutput> pending = open_outputs(flags.outputs);

  const std::unique_ptr<Executor> executor = make_executor(flags.place);
  const Wanted wanted{!flags.outputs.d_q.empty(), !flags.outputs.d_k.empty(),
                      !flags.outputs.d_v.empty(), !flags.outputs.d_bias.empty(),
                      !flags.outputs.d_sink.empty()};
  PlannedCase planned(c, plan_options(c, wanted, flags.place.implementation, executor.get()),
                      device);
  Results results = allocate_results(c, wanted);
  const double forward = planned.forward(results);
  const double backward = c.backward() ? planned.backward(results) : 0;

  // The bias may have come with fewer dimensions than the library's four.
  if (results.d_bias.present()) results.d_bias.reshape(c.bias_sizes);
  fmt::print("forward   {}, {:.3f} ms\n", planned.plan().forward_implementation(), forward);
  if (c.backward()) {
    fmt::print("backward  {}, {:.3f} ms\n", planned.plan().backward_implementation(), backward);
  }
  write_outputs(pending, results);
}

}  // namespace

void add_run_command(CLI::App& app, int&) {
  CLI::App* command = app.add_subcommand("run", "Compute attention over files");
  const auto flags = std::make_shared<RunFlags>();
  add_file_flags(*command, flags->files);
  add_feature_flags(*command, flags->features);
  add_precision_flags(*command, flags->precision);
  add_output_flags(*command, flags->outputs);
  add_place_flags(*command, flags->place);
  command->footer(
      "Example, forward and backward:\n"
      "  tessera run --q a.safetensors:q --k a.safetensors:k --v a.safetensors:v --causal \\\n"
      "              --out o.npy --lse lse.npy --dout do.npy --dq dq.npy --dk dk.npy --dv dv.npy");
  command->callback([flags] { run(*flags); });
}

}  // namespace tessera::cli
