// tessera calibrate: the precision of each (layer, step) of a model, from samples of q, k and v.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "app.hpp"
#include "calibrate/choose.hpp"
#include "calibrate/plan_file.hpp"
#include "calibrate/plot.hpp"
#include "check/accuracy.hpp"
#include "commands.hpp"
#include "error.hpp"
#include "flags.hpp"
#include "gnuplot.hpp"
#include "io/file.hpp"
#include "progress.hpp"
#include "samples.hpp"
#include "scheme_flags.hpp"
#include "table.hpp"

namespace tessera::cli {
namespace {

using calibrate::Entry;
using calibrate::PlanHeading;
using calibrate::Targets;

struct CalibrateFlags {
  std::vector<std::string> samples, held_out;
  std::string model, out, layout = "bhsd", dtype, plot;
  bool no_plot = false;
  Targets targets;
  SchemeFlags scheme;
  FeatureFlags features;
  PlaceFlags place;
};

/// A sample and the (layer, step) that its name says.
struct Place {
  std::int64_t layer = 0, step = 0;
};

std::optional<std::int64_t> numbered(std::string_view text, std::string_view word) {
  if (!text.starts_with(word)) return std::nullopt;
  text.remove_prefix(word.size());
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool good = error == std::errc() && end == text.data() + text.size() && value >= 0;
  return good ? std::optional(value) : std::nullopt;
}

Place place_of(const char* flag, const Sample& sample) {
  const std::size_t dot = std::min(sample.name.find('.'), sample.name.size());
  const auto layer = numbered(std::string_view(sample.name).substr(0, dot), "layer");
  std::optional<std::int64_t> step = 0;
  if (dot < sample.name.size()) {
    step = numbered(std::string_view(sample.name).substr(dot + 1), "step");
  }
  if (!layer || !step) {
    fail("{} {}: tensors of '{}', expected names layerL.stepS.q or layerL.q, and so k and v", flag,
         sample.file, sample.name);
  }
  return {*layer, *step};
}

/// The meter of one sample; exact attention has been computed.
AccuracyMeter meter_of(const CalibrateFlags& flags, const char* flag, const Sample& sample,
                       Device device, Executor* executor, TensorFiles& files) {
  AttentionCase c = load_sample(flag, sample, flags.layout, flags.dtype, files);
  c.name = fmt::format("{} {}", flag, sample.source());
  c.attention = to_attention(flags.features);
  return AccuracyMeter(std::move(c), {device, flags.place.implementation, executor});
}

Difference measured(AccuracyMeter& meter, Precision precision, const Quantization& scheme) {
  const Accuracy accuracy = meter.measure(precision, scheme);
  const std::string& name = meter.attention_case().name;
  if (!accuracy.rejection.empty()) fail("{}: {}", name, accuracy.rejection);
  return accuracy.all;
}

/// Heads and head dim of all samples must be those of the first.
void agree_on_shape(const AttentionCase& c, PlanHeading& heading) {
  const int heads = c.bshd ? 2 : 1;
  const std::int64_t q = c.q.size(heads), kv = c.k.size(heads), head_dim = c.q.size(3);
  if (heading.head_dim == 0) {
    heading.heads_q = q;
    heading.heads_kv = kv;
    heading.head_dim = head_dim;
  }
  if (q != heading.heads_q || kv != heading.heads_kv || head_dim != heading.head_dim) {
    fail("{}: heads {}/{}, head dim {}, expected the first sample's {}/{}, {}", c.name, q, kv,
         head_dim, heading.heads_q, heading.heads_kv, heading.head_dim);
  }
}

struct Calibration {
  PlanHeading heading;
  std::vector<Entry> entries;  ///< By layer, then step.
};

Calibration calibrate_samples(const CalibrateFlags& flags, const std::vector<Sample>& samples,
                              Device device, Executor* executor, TensorFiles& files,
                              ProgressBar& bar) {
  Calibration result;
  result.heading.model = flags.model;
  result.heading.quantization = to_quantization(flags.scheme);
  std::map<std::pair<std::int64_t, std::int64_t>, Entry> entries;
  for (const Sample& sample : samples) {
    bar.step(sample.source());
    const Place place = place_of("SAMPLES", sample);
    AccuracyMeter meter = meter_of(flags, "SAMPLES", sample, device, executor, files);
    agree_on_shape(meter.attention_case(), result.heading);
    Entry& entry = entries[{place.layer, place.step}];
    entry.layer = place.layer;
    entry.step = place.step;
    ++entry.samples;
    for (Precision precision : {Precision::sage4, Precision::sage8}) {
      calibrate::keep_worse(measured(meter, precision, result.heading.quantization),
                            precision == Precision::sage4 ? entry.sage4 : entry.sage8);
    }
  }
  for (auto& [place, entry] : entries) result.entries.push_back(std::move(entry));
  choose_precisions(flags.targets, result.entries);
  return result;
}

std::string cosine_text(double x) { return fmt::format("{:.5f}", x); }
std::string error_text(double x) { return fmt::format("{:.4f}", x); }

void print_entries(const std::vector<Entry>& entries) {
  Table table({{"layer", Align::right},
               {"step", Align::right},
               {"sage4: cosine", Align::right},
               {"relative L1", Align::right},
               {"RMSE", Align::right},
               {"cos·(1−L1)", Align::right},
               {"sage8: cosine", Align::right},
               {"relative L1", Align::right},
               {"RMSE", Align::right},
               {"precision"},
               {"because of"}});
  int counts[3] = {};
  for (const Entry& e : entries) {
    ++counts[static_cast<int>(e.precision)];
    table.add({fmt::format("{}", e.layer), fmt::format("{}", e.step), cosine_text(e.sage4.cosine),
               error_text(e.sage4.relative_l1), fmt::format("{:.2e}", e.sage4.rmse),
               cosine_text(calibrate::score(e.sage4)), cosine_text(e.sage8.cosine),
               error_text(e.sage8.relative_l1), fmt::format("{:.2e}", e.sage8.rmse),
               name_of(e.precision), e.reason});
  }
  fmt::print("{}{} of sage4, {} of sage8, {} exact\n", table.to_string(),
             counts[static_cast<int>(Precision::sage4)], counts[static_cast<int>(Precision::sage8)],
             counts[static_cast<int>(Precision::exact)]);
}

/// A held-out sample in what the plan says for its layer and step.
struct HeldOut {
  std::string name;
  const Entry* entry = nullptr;
  Difference difference;
  double limit = 0;  ///< Of the relative L1 error.

  bool passed() const { return difference.relative_l1 <= limit; }
};

std::vector<HeldOut> measure_held_out(const CalibrateFlags& flags, const Calibration& calibration,
                                      const std::string& plan_text,
                                      const std::vector<Sample>& samples, Device device,
                                      Executor* executor, TensorFiles& files, ProgressBar& bar) {
  constexpr double kSlack = 1.1;
  const AdaptivePlan plan = require(AdaptivePlan::parse(plan_text, flags.model));
  std::vector<HeldOut> results;
  for (const Sample& sample : samples) {
    bar.step(sample.source());
    const Place place = place_of("--held-out", sample);
    const auto entry = std::find_if(
        calibration.entries.begin(), calibration.entries.end(),
        [&](const Entry& e) { return e.layer == place.layer && e.step == place.step; });
    if (entry == calibration.entries.end()) {
      fail("--held-out {}: layer {} step {}, expected one that has samples", sample.source(),
           place.layer, place.step);
    }
    AccuracyMeter meter = meter_of(flags, "--held-out", sample, device, executor, files);
    const Accuracy accuracy = meter.measure(plan, place.layer, place.step);
    if (!accuracy.rejection.empty()) fail("--held-out {}: {}", sample.source(), accuracy.rejection);
    const double calibrated = entry->in(entry->precision).relative_l1;
    results.push_back({sample.source(), &*entry, accuracy.all,
                       kSlack * flags.targets.max_l1.value_or(calibrated)});
  }
  return results;
}

/// Returns whether all passed.
bool print_held_out(const std::vector<HeldOut>& results) {
  if (results.empty()) return true;
  Table table({{"held out"},
               {"precision"},
               {"cosine", Align::right},
               {"relative L1", Align::right},
               {"at most", Align::right},
               {"verdict"}});
  int failed = 0;
  for (const HeldOut& r : results) {
    failed += r.passed() ? 0 : 1;
    table.add({r.name, name_of(r.entry->precision), cosine_text(r.difference.cosine),
               error_text(r.difference.relative_l1), error_text(r.limit),
               r.passed() ? "pass" : "FAIL"});
  }
  fmt::print("\n{}{} held-out samples, {} failed\n", table.to_string(), results.size(), failed);
  return failed == 0;
}

void check_flags(const CalibrateFlags& flags) {
  if (flags.samples.empty()) fail("SAMPLES: absent, expected FILE.safetensors or NAME.q.npy");
  if (flags.model.empty()) fail("--model: absent, expected the model's name");
  if (flags.out.empty()) fail("--out: absent, expected a file for the plan");
  const Targets& t = flags.targets;
  if (t.fraction && !(*t.fraction >= 0 && *t.fraction <= 1)) {
    fail("--fraction: {}, expected a number in [0, 1]", *t.fraction);
  }
  if (t.min_cosine && !(*t.min_cosine >= -1 && *t.min_cosine <= 1)) {
    fail("--min-cosine: {}, expected a number in [−1, 1]", *t.min_cosine);
  }
  if (t.max_l1 && !(*t.max_l1 >= 0)) {
    fail("--max-l1: {}, expected a number of at least 0", *t.max_l1);
  }
  if (flags.no_plot && !flags.plot.empty()) {
    fail("--plot: {}, expected no --no-plot with it", flags.plot);
  }
}

/// "" for no plots.
std::string plot_prefix_of(const CalibrateFlags& flags) {
  if (flags.no_plot) return "";
  if (!flags.plot.empty()) return flags.plot;
  return std::filesystem::path(flags.out).replace_extension().string();
}

void write_plan(OutputFile& file, const std::string& text) {
  const std::span<const std::byte> piece = std::as_bytes(std::span(text));
  file.write({&piece, 1});
  file.commit();
  fmt::print("plan: {}\n", file.path());
}

int run_calibrate(const CalibrateFlags& flags) {
  check_flags(flags);
  const Device device = to_device(flags.place.device);
  TensorFiles files;
  const std::vector<Sample> samples = find_samples("SAMPLES", flags.samples, files);
  const std::vector<Sample> held_out = find_samples("--held-out", flags.held_out, files);
  for (const Sample& sample : samples) place_of("SAMPLES", sample);
  for (const Sample& sample : held_out) place_of("--held-out", sample);
  // What cannot be written is told before minutes of measuring.
  OutputFile out("--out", flags.out);
  const std::string prefix = plot_prefix_of(flags);
  if (!prefix.empty()) check_plot(prefix, prefix + "-accuracy.png");

  const std::unique_ptr<Executor> executor = make_executor(flags.place);
  ProgressBar bar(static_cast<int>(samples.size() + held_out.size()));
  const Calibration calibration =
      calibrate_samples(flags, samples, device, executor.get(), files, bar);
  const std::string text = plan_text(calibration.heading, flags.targets, calibration.entries);
  const std::vector<HeldOut> checked =
      measure_held_out(flags, calibration, text, held_out, device, executor.get(), files, bar);
  bar.erase();
  print_entries(calibration.entries);
  write_plan(out, text);
  if (!prefix.empty()) {
    const auto plots = write_plots(flags.model, flags.targets, calibration.entries, prefix);
    if (plots) {
      fmt::print("plots: {}\n", fmt::join(*plots, " "));
    } else {
      fmt::print("no plots: gnuplot is not installed\n");
    }
  }
  return print_held_out(checked) ? kGood : kCheckFailed;
}

void add_sample_flags(CLI::App& command, CalibrateFlags& flags) {
  const std::string group = "Samples and results";
  command
      .add_option("SAMPLES", flags.samples,
                  "FILE.safetensors with tensors layerL.stepS.q, .k and .v, or layerL.stepS.q.npy "
                  "beside .k.npy and .v.npy; without .stepS the step is 0")
      ->type_name("FILE ...");
  command
      .add_option("--held-out", flags.held_out,
                  "More samples, which only check the plan: their relative L1 must be within 10 % "
                  "of --max-l1, or of that of their layer's and step's samples")
      ->type_name("FILE ...")
      ->group(group);
  command.add_option("--layout", flags.layout, "Order of the samples' dimensions")
      ->check(one_of({"bhsd", "bshd"}))
      ->group(group);
  command
      .add_option("--dtype", flags.dtype,
                  "Dtype that q, k and v are rounded to on load (default q's own)")
      ->check(one_of({"f32", "f16", "bf16"}))
      ->group(group);
  command.add_option("--model", flags.model, "The model's name, which the plan keeps")
      ->type_name("NAME")
      ->group(group);
  command.add_option("--out", flags.out, "Output: the plan, JSON")->type_name("FILE")->group(group);
  command
      .add_option("--plot", flags.plot,
                  "Draw PREFIX-accuracy, .png and .svg, with gnuplot (default: --out's name)")
      ->type_name("PREFIX")
      ->group(group);
  command.add_flag("--no-plot", flags.no_plot, "No plots")->group(group);
}

void add_target_flags(CLI::App& command, Targets& targets) {
  const std::string group = "Which precision";
  command
      .add_option("--fraction", targets.fraction,
                  "sage8 for this share of all (layer, step), those with the lowest "
                  "cosine·(1 − L1) in sage4 (default 0.3; 0 with a target)")
      ->check(number())
      ->type_name("X")
      ->group(group);
  command
      .add_option("--min-cosine", targets.min_cosine,
                  "sage8 where sage4's cosine similarity is below, exact where sage8's is")
      ->check(number())
      ->type_name("X")
      ->group(group);
  command
      .add_option("--max-l1", targets.max_l1,
                  "sage8 where sage4's relative L1 error is above, exact where sage8's is")
      ->check(number())
      ->type_name("X")
      ->group(group);
}

}  // namespace

void add_calibrate_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "calibrate", "Choose a precision for each layer and step of a model, from samples");
  const auto flags = std::make_shared<CalibrateFlags>();
  add_sample_flags(*command, *flags);
  add_target_flags(*command, flags->targets);
  add_scheme_flags(*command, flags->scheme);
  add_feature_flags(*command, flags->features);
  add_place_flags(*command, flags->place);
  command->footer(
      "O of sage4 and of sage8 is compared with exact attention in f32; of several samples of one\n"
      "layer and step the worst counts. The plan is what --precision adaptive takes. Exit code 1 "
      "if\n"
      "a held-out sample misses.\n"
      "Example:\n"
      "  tessera calibrate a.safetensors b.safetensors --causal --model gpt --out gpt.json \\\n"
      "                    --max-l1 0.05 --held-out c.safetensors");
  command->callback([flags, &exit_code] { exit_code = run_calibrate(*flags); });
}

}  // namespace tessera::cli
