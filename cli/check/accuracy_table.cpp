#include "check/accuracy_table.hpp"

#include <fmt/core.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <utility>

#include "app.hpp"
#include "check/accuracy.hpp"
#include "check/distributions.hpp"
#include "error.hpp"
#include "generate_case.hpp"
#include "load_case.hpp"
#include "progress.hpp"
#include "samples.hpp"
#include "table.hpp"

namespace tessera::cli {
namespace {

struct Variant {
  std::string label;
  Quantization pieces;
};

const char* in_words(SmoothQ smooth_q, Smoothing smooth_k) {
  const bool k = smooth_k == Smoothing::on;
  switch (smooth_q) {
    case SmoothQ::tensor:
      return k ? "smooth Q+K" : "smooth Q";
    case SmoothQ::block:
      return k ? "smooth Q (block) +K" : "smooth Q (block)";
    default:
      return k ? "smooth K" : "not smoothed";
  }
}

/// "per thread, smooth Q+K, FP8 PV".
std::string in_words(Precision precision, const Quantization& pieces) {
  const Quantization q = resolved(precision, pieces);
  return fmt::format(
      "per {}, {}{}, {} PV", name_of(q.granularity), in_words(q.smooth_q, q.smooth_k),
      q.smooth_v == Smoothing::on ? ", smooth V" : "", q.pv == PvFormat::fp8 ? "FP8" : "16-bit");
}

/// The default scheme, and those that differ from it in one piece.
std::vector<Variant> ablation(Precision precision) {
  std::vector<Variant> variants;
  const auto add = [&](const Quantization& pieces) {
    variants.push_back({in_words(precision, pieces), pieces});
  };
  const Quantization standard = resolved(precision, {});
  add({});
  for (const auto& [smooth_q, smooth_k] :
       {std::pair{SmoothQ::none, Smoothing::off}, std::pair{SmoothQ::none, Smoothing::on},
        std::pair{SmoothQ::tensor, Smoothing::off}, std::pair{SmoothQ::tensor, Smoothing::on},
        std::pair{SmoothQ::block, Smoothing::on}}) {
    Quantization pieces;
    pieces.smooth_q = smooth_q;
    pieces.smooth_k = smooth_k;
    if (resolved(precision, pieces) != standard) add(pieces);
  }
  for (ScaleGranularity granularity : {ScaleGranularity::tensor, ScaleGranularity::block,
                                       ScaleGranularity::warp, ScaleGranularity::token}) {
    Quantization pieces;
    pieces.granularity = granularity;
    add(pieces);
  }
  Quantization values;
  values.smooth_v = Smoothing::on;
  add(values);
  values.pv = PvFormat::half;
  add(values);
  values.smooth_v = Smoothing::off;
  add(values);
  return variants;
}

std::vector<Variant> variants_of(Precision precision, const SchemeFlags& scheme) {
  if (scheme.first_given().empty()) return ablation(precision);
  const Quantization pieces = to_quantization(scheme);
  return {{in_words(precision, pieces), pieces}};
}

/// A set of data that has not been made yet: one at a time is alive.
using MakeCase = std::function<AttentionCase()>;

// Small enough for the scalar model on two cores, and more than one block of queries.
CaseShape shape_of(const ShapeFlags& given, const FeatureFlags& features, const FileFlags& files) {
  ShapeFlags flags = given;
  flags.heads = flags.heads.value_or(2);
  flags.seq = flags.seq.value_or(256);
  const DType dtype = files.dtype.empty() ? DType::f16 : to_dtype(files.dtype);
  if (dtype == DType::f64) fail("--dtype: f64, expected f32, f16 or bf16 with --precision");
  return to_case_shape(flags, features, files.layout, dtype);
}

std::vector<MakeCase> generated_cases(const CaseShape& shape, const FeatureFlags& features) {
  std::vector<MakeCase> cases;
  for (Distribution distribution : kDistributions) {
    cases.push_back([=] {
      AttentionCase c =
          generate_case(shape, to_attention(features), features.seed, features.offset, false);
      fill_tokens(distribution, features.seed, c);
      c.name = name_of(distribution);
      return c;
    });
  }
  return cases;
}

class Report {
 public:
  void add(const std::string& data, Precision precision, const Variant& variant,
           const Accuracy& accuracy) {
    const std::string scheme = fmt::format("{}, {}", name_of(precision), variant.label);
    if (!accuracy.rejection.empty()) {
      table_.add({data, scheme, accuracy.rejection});
      return;
    }
    ++measured_;
    const auto cosine = [](double x) { return fmt::format("{:.5f}", x); };
    const auto number = [](double x) { return fmt::format("{:.4f}", x); };
    const Difference& d = accuracy.all;
    table_.add({data, scheme, accuracy.row, cosine(d.cosine), number(d.relative_l1),
                fmt::format("{:.2e}", d.rmse), cosine(accuracy.worst_cosine),
                number(accuracy.worst_l1)});
  }
  /// Whether anything was measured.
  bool print() const {
    fmt::print("{}", table_.to_string());
    return measured_ > 0;
  }

 private:
  int measured_ = 0;
  Table table_{{{"data"},
                {"scheme"},
                {"row"},
                {"cosine", Align::right},
                {"relative L1", Align::right},
                {"RMSE", Align::right},
                {"worst head's cosine", Align::right},
                {"relative L1", Align::right}}};
};

}  // namespace

int check_accuracy(const AccuracyFlags& flags, const FileFlags& files, const FeatureFlags& features,
                   const ShapeFlags& shape, const PlaceFlags& place) {
  const Device device = to_device(place.device);
  const std::unique_ptr<Executor> executor = make_executor(place);
  TensorFiles open;
  const std::vector<Sample> samples = find_samples("--activations", flags.activations, open);
  std::vector<MakeCase> cases;
  if (files.given()) {
    if (shape.given()) fail("--q {}: expected either files or a shape", files.q);
    cases.push_back([&] {
      AttentionCase c = load_case(files, features, open);
      if (c.q.dtype() == DType::f64) {
        fail("--q {}: dtype f64, expected --dtype f32, f16 or bf16 with --precision", files.q);
      }
      return c;
    });
  } else {
    const CaseShape sizes = shape_of(shape, features, files);
    cases = generated_cases(sizes, features);
    fmt::print("generated: {} B {}, {}/{} heads, S {}x{}, D {}/{}\n", name_of(sizes.dtype),
               sizes.batch, sizes.heads_q, sizes.heads_kv, sizes.seq_q, sizes.seq_kv,
               sizes.head_dim, sizes.head_dim_v);
    std::fflush(stdout);
  }
  for (const Sample& sample : samples) {
    cases.push_back([&, sample] {
      AttentionCase c = load_sample("--activations", sample, files.layout, files.dtype, open);
      c.attention = to_attention(features);
      return c;
    });
  }
  std::size_t schemes = 0;
  for (Precision precision : flags.precisions)
    schemes += variants_of(precision, flags.scheme).size();

  ProgressBar bar(static_cast<int>(schemes * cases.size()));
  Report report;
  for (const MakeCase& make : cases) {
    AccuracyMeter meter(make(), {device, place.implementation, executor.get()});
    const std::string name = meter.attention_case().name;
    for (Precision precision : flags.precisions) {
      for (const Variant& variant : variants_of(precision, flags.scheme)) {
        bar.step(fmt::format("{}: {}, {}", name, name_of(precision), variant.label));
        report.add(name, precision, variant, meter.measure(precision, variant.pieces));
      }
    }
  }
  bar.erase();
  return report.print() ? kGood : kCheckFailed;
}

}  // namespace tessera::cli
