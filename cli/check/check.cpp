// tessera check: every row of the table against the reference.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "app.hpp"
#include "attention_case.hpp"
#include "check/accuracy_table.hpp"
#include "check/compare.hpp"
#include "check/suite.hpp"
#include "commands.hpp"
#include "error.hpp"
#include "flags.hpp"
#include "generate_case.hpp"
#include "load_case.hpp"
#include "scheme_flags.hpp"
#include "table.hpp"

namespace tessera::cli {
namespace {

struct CheckFlags {
  FileFlags files;
  FeatureFlags features;
  ShapeFlags shape;
  PlaceFlags place;
  std::string d_out;
  bool forward_only = false;
  std::vector<std::string> precision;  ///< Empty: exact.
  SchemeFlags scheme;
  std::vector<std::string> activations;
};

std::vector<DType> dtypes_of(const FileFlags& files) {
  if (files.dtype.empty()) return {DType::f32, DType::f16, DType::bf16};
  if (files.dtype == "f64") fail("--dtype: f64, expected f32, f16 or bf16: f64 is the reference");
  return {to_dtype(files.dtype)};
}

AttentionCase case_from_files(const CheckFlags& flags) {
  TensorFiles files;
  AttentionCase c = load_case(flags.files, flags.features, files);
  if (c.q.dtype() == DType::f64) {
    fail("--q {}: dtype f64, expected --dtype f32, f16 or bf16: f64 is the reference",
         flags.files.q);
  }
  if (flags.forward_only) return c;
  if (!flags.d_out.empty()) {
    c.d_o = files.load("--dout", flags.d_out, c.q.dtype());
  } else {
    // No element of the random tensors that generate_case makes is drawn from this stream.
    constexpr std::uint64_t kStream = 1000;
    c.d_o = HostTensor(c.q.dtype(), c.o_sizes());
    c.d_o.fill_normal(flags.features.seed, kStream);
  }
  return c;
}

// A feature by itself asks for a case that has it.
bool describes_shape(const CheckFlags& flags) {
  return flags.shape.given() || flags.features.given() || flags.files.layout != "bhsd";
}

// One case at a time is alive: `visit` is called with each.
template <typename Visit>
void for_each_case(const CheckFlags& flags, const Visit& visit) {
  if (flags.files.given()) {
    if (flags.shape.given()) fail("--q {}: expected either files or a shape", flags.files.q);
    visit(case_from_files(flags));
    return;
  }
  for (DType dtype : dtypes_of(flags.files)) {
    std::vector<SuiteCase> suite;
    if (describes_shape(flags)) {
      suite.push_back({to_case_shape(flags.shape, flags.features, flags.files.layout, dtype),
                       to_attention(flags.features)});
    } else {
      suite = default_suite(dtype);
    }
    for (const SuiteCase& c : suite) {
      visit(generate_case(c.shape, c.attention, flags.features.seed, flags.features.offset,
                          !flags.forward_only));
    }
  }
}

struct RowsToCheck {
  std::vector<RowToCheck> usable;
  std::string absent;  ///< A line for each row that this machine cannot run.
};

RowsToCheck rows_to_check(const PlaceFlags& place, Device device) {
  RowsToCheck rows;
  std::string names;
  for (const Implementation& row : implementations()) {
    if (row.device != device.type) continue;
    names += (names.empty() ? "" : ", ") + row.name;
    if (!place.implementation.empty() && row.name != place.implementation) continue;
    if (row.available) {
      rows.usable.push_back({row.name, device});
    } else if (place.implementation.empty()) {
      rows.absent += fmt::format("{}: not on this machine: {}\n", row.name, row.unavailable);
    } else {
      fail("--impl: {}, not on this machine: {}", row.name, row.unavailable);
    }
  }
  if (rows.usable.empty()) fail("--impl: {}, expected one of {}", place.implementation, names);
  return rows;
}

class Report {
 public:
  /// `each`: a line for every result, instead of for each pass's worst.
  explicit Report(bool each) : each_(each) {}

  void add(const AttentionCase& c, const RowCheck& check) {
    if (!check.rejection.empty()) {
      table_.add({c.name, name_of(c.q.dtype()), check.row, "", "", "", "", "", "", "rejected",
                  check.rejection});
      ++rejected_;
      return;
    }
    for (const TensorCheck& tensor : check.tensors) {
      ++compared_;
      failed_ += tensor.passed() ? 0 : 1;
      if (each_) add_line(c, check.row, tensor);
    }
    if (each_) return;
    for (bool backward : {false, true}) {
      const TensorCheck* worst = nullptr;
      for (const TensorCheck& tensor : check.tensors) {
        const bool worse = worst == nullptr || !(tensor.severity() <= worst->severity());
        if (tensor.backward == backward && worse) worst = &tensor;
      }
      if (worst != nullptr) add_line(c, check.row, *worst);
    }
  }

  bool print() const {
    fmt::print("{}\n{} results compared, {} passed, {} failed; {} times a row rejected a case\n",
               table_.to_string(), compared_, compared_ - failed_, failed_, rejected_);
    return failed_ == 0;
  }

 private:
  void add_line(const AttentionCase& c, const std::string& row, const TensorCheck& t) {
    const Difference& d = t.difference;
    const auto number = [](double value) { return fmt::format("{:.2e}", value); };
    table_.add({c.name, name_of(c.q.dtype()), row, t.name, number(d.max_abs), number(t.tolerance),
                fmt::format("{:.8f}", d.cosine), number(d.relative_l1), number(d.rmse),
                t.passed() ? "pass" : "FAIL", t.repeatable ? "" : "a second run differs"});
  }

  bool each_;
  int compared_ = 0;
  int failed_ = 0;
  int rejected_ = 0;
  Table table_{{{"case"},
                {"dtype"},
                {"row"},
                {"result"},
                {"max abs error", Align::right},
                {"tolerance", Align::right},
                {"cosine", Align::right},
                {"relative L1", Align::right},
                {"RMSE", Align::right},
                {"verdict"},
                {""}}};
};

/// The precisions to tabulate; none if rows are to be compared with the reference.
std::vector<Precision> quantised_precisions(const CheckFlags& flags) {
  std::vector<Precision> precisions;
  for (const std::string& name : flags.precision) precisions.push_back(to_precision(name));
  const auto exact = std::find(precisions.begin(), precisions.end(), Precision::exact);
  if (exact != precisions.end()) {
    if (precisions.size() > 1) fail("--precision: exact, expected it alone");
    precisions.clear();
  }
  return precisions;
}

int check(const CheckFlags& flags) {
  const std::vector<Precision> precisions = quantised_precisions(flags);
  if (!precisions.empty()) {
    if (!flags.d_out.empty()) fail("--dout {}: expected no --precision with it", flags.d_out);
    return check_accuracy({precisions, flags.scheme, flags.activations}, flags.files,
                          flags.features, flags.shape, flags.place);
  }
  const std::string piece = flags.scheme.first_given();
  if (!piece.empty()) fail("{}: expected --precision sage8 or sage4 with it", piece);
  if (!flags.activations.empty()) {
    fail("--activations {}: expected --precision sage8 or sage4 with it",
         flags.activations.front());
  }
  const Device device = to_device(flags.place.device);
  if (flags.forward_only && !flags.d_out.empty()) {
    fail("--dout {}: expected no --forward-only with it", flags.d_out);
  }
  const RowsToCheck rows = rows_to_check(flags.place, device);
  const std::unique_ptr<Executor> executor = make_executor(flags.place);
  Report report(flags.files.given() || describes_shape(flags));
  for_each_case(flags, [&](const AttentionCase& c) {
    const Oracle oracle(c, executor.get());
    for (const RowToCheck& row : rows.usable) report.add(c, oracle.check(row));
  });
  fmt::print("{}", rows.absent);
  return report.print() ? kGood : kCheckFailed;
}

}  // namespace

void add_check_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "check",
      "Compare every row of the table with the reference: on files, on a shape, or on a default "
      "set of cases");
  const auto flags = std::make_shared<CheckFlags>();
  add_file_flags(*command, flags->files);
  add_shape_flags(*command, flags->shape);
  add_feature_flags(*command, flags->features);
  add_place_flags(*command, flags->place);
  command->add_option("--dout", flags->d_out, "Gradient of O (default: generated)")
      ->type_name("FILE")
      ->group("Tensors: FILE.npy or FILE.safetensors:NAME");
  command->add_flag("--forward-only", flags->forward_only, "Leave the backward pass out");
  const std::string accuracy = "Accuracy of quantised attention";
  command
      ->add_option("--precision", flags->precision,
                   "Print how far sage8 or sage4 (or both: sage8,sage4) is from exact attention")
      ->delimiter(',')
      ->check(one_of({"exact", "sage8", "sage4"}))
      ->type_name("LIST")
      ->group(accuracy);
  command
      ->add_option(
          "--activations", flags->activations,
          "More data: FILE.safetensors with tensors NAME.q, NAME.k and NAME.v, or NAME.q.npy")
      ->type_name("FILE ...")
      ->group(accuracy);
  add_scheme_flags(*command, flags->scheme);
  command->footer(
      "A result passes if max|out − ref| ≤ 2·max|naive − ref| + ε, where ref is the reference in\n"
      "f64 on the rounded inputs, naive is unfused attention in the tested dtype, and ε is what\n"
      "rounding in f32 and of the result can add; and if a second run gives the same bits (a "
      "GPU's\n"
      "gradients only with --deterministic).\n"
      "Without files or a shape, each line is a pass's worst result. Exit code 1 on a failure.\n"
      "With --precision nothing passes or fails: each line is one set of data (normal, uniform,\n"
      "channel outliers, channel biases; B 1, 2 heads, S 256, D 64, f16 unless flags say "
      "otherwise)\n"
      "in one scheme: the default one, and those that differ from it in one piece; or, if a piece\n"
      "is named, that scheme alone.\n"
      "Examples:\n"
      "  tessera check\n"
      "  tessera check --precision sage8,sage4 --activations a.safetensors --causal\n"
      "  tessera check --q a.safetensors:q --k a.safetensors:k --v a.safetensors:v --causal\n"
      "  tessera check --heads 8 --heads-kv 2 --seq 300 --head-dim 96 --with bias,sink --dtype "
      "f16");
  command->callback([flags, &exit_code] { exit_code = check(*flags); });
}

}  // namespace tessera::cli
