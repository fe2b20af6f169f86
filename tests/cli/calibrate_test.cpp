// tessera calibrate: which precision each (layer, step) gets, the plan file, held-out samples.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "calibrate/choose.hpp"
#include "calibrate/plot.hpp"
#include "cli/file_images.hpp"
#include "cli/process.hpp"
#include "cli/temporary_folder.hpp"
#include "host_tensor.hpp"
#include "tessera/quant.hpp"

namespace tessera::cli::test {
namespace {

using calibrate::choose_precisions;
using calibrate::Entry;
using calibrate::Targets;

/// Errors of sage4, with cosine 1 − error / 10; those of sage8 are a tenth.
std::vector<Entry> entries_of(const std::vector<double>& errors) {
  std::vector<Entry> entries;
  for (double error : errors) {
    Entry entry;
    entry.layer = static_cast<std::int64_t>(entries.size());
    entry.sage4.relative_l1 = error;
    entry.sage4.cosine = 1 - error / 10;
    entry.sage8.relative_l1 = error / 10;
    entry.sage8.cosine = 1 - error / 100;
    entries.push_back(entry);
  }
  return entries;
}

/// "4" for sage4, "8" for sage8, "x" for exact.
std::string chosen(const Targets& targets, const std::vector<double>& errors) {
  std::vector<Entry> entries = entries_of(errors);
  choose_precisions(targets, entries);
  std::string text;
  for (const Entry& e : entries) {
    text += e.precision == Precision::sage4 ? "4" : e.precision == Precision::sage8 ? "8" : "x";
    EXPECT_EQ(e.reason.empty(), e.precision == Precision::sage4);
  }
  return text;
}

TEST(ChoosePrecisions, TheWorstFractionGetsSage8) {
  EXPECT_EQ(chosen({}, {0.1, 0.5, 0.2, 0.3}), "4848");  // 30 % of 4, rounded up
  EXPECT_EQ(chosen({}, {0.1, 0.5, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1}), "4888444444");
  EXPECT_EQ(chosen({0, {}, {}}, {0.1, 0.5}), "44");
  EXPECT_EQ(chosen({1, {}, {}}, {0.1, 0.5}), "88");
  EXPECT_EQ(chosen({0.5, {}, {}}, {}), "");
}

TEST(ChoosePrecisions, WhateverMissesATargetGetsWhatMeetsIt) {
  EXPECT_EQ(chosen({{}, {}, 0.25}, {0.1, 0.5, 0.2, 3.0}), "484x");
  EXPECT_EQ(chosen({{}, 0.97, {}}, {0.1, 0.5, 0.2, 4.0}), "484x");
  EXPECT_EQ(chosen({{}, 0.999, 0.25}, {0.1, 0.5}), "8x");
  EXPECT_EQ(chosen({0.25, {}, 0.6}, {0.1, 0.5, 0.2, 0.3}), "4844");  // both
}

TEST(CalibratePlot, HasACurveForEachPrecisionAndTheTarget) {
  std::vector<Entry> entries = entries_of({0.1, 0.5, 3});
  const Targets targets{{}, {}, 0.25};
  choose_precisions(targets, entries);
  const std::string script = calibrate::plot_script("it's a model", targets, entries, "x.svg");
  EXPECT_NE(script.find("'it''s a model: quantised"), std::string::npos) << script;
  EXPECT_NE(script.find("title 'sage4'"), std::string::npos);
  EXPECT_NE(script.find("title 'sage8'"), std::string::npos);
  EXPECT_NE(script.find("0.25 with lines"), std::string::npos);
  EXPECT_NE(script.find("$chosen << EOD\n0 0.1\n1 0.05\n2 NaN\nEOD\n"), std::string::npos)
      << script;
}

constexpr std::int64_t kHeads = 2, kTokens = 48, kHeadDim = 16;

/// q, k and v of one layer and step, f32; channels of q and k with outliers if `hard`.
std::vector<std::vector<float>> tokens(std::uint64_t seed, bool hard, std::int64_t heads = kHeads) {
  std::vector<std::vector<float>> all;
  for (std::uint64_t stream = 0; stream < 3; ++stream) {
    HostTensor tensor(DType::f32, {1, heads, kTokens, kHeadDim});
    tensor.fill_normal(seed, stream);
    std::vector<float> values;
    for (std::int64_t i = 0; i < tensor.elements(); ++i) {
      const bool outlier = hard && stream < 2 && i % kHeadDim == 3;
      values.push_back(static_cast<float>((outlier ? 8 : 1) * tensor.at(i)));
    }
    all.push_back(std::move(values));
  }
  return all;
}

struct Tensors {
  std::string header, data;

  void add(const std::string& name, std::int64_t heads, const std::vector<float>& values) {
    const std::size_t begin = data.size();
    data += bytes_of_values(values);
    header += (header.empty() ? "\"" : ",\"") + name + R"(":{"dtype":"F32","shape":[1,)" +
              std::to_string(heads) + ",48,16],\"data_offsets\":[" + std::to_string(begin) + "," +
              std::to_string(data.size()) + "]}";
  }
  void add_sample(const std::string& name, std::uint64_t seed, bool hard,
                  std::int64_t heads = kHeads) {
    const auto values = tokens(seed, hard, heads);
    for (int part = 0; part < 3; ++part) {
      add(name + "." + std::string(1, "qkv"[part]), heads, values[part]);
    }
  }
  std::string image() const { return safetensors_image("{" + header + "}", data); }
};

class Calibrate : public testing::Test {
 protected:
  Calibrate() {
    Tensors samples;
    samples.add_sample("layer0.step0", 1, false);
    samples.add_sample("layer0.step1", 2, false);
    samples.add_sample("layer1.step0", 3, true);
    samples.add_sample("layer1.step1", 4, true);
    samples.add("note", kHeads, tokens(9, false)[0]);
    path_ = folder_.write("samples.safetensors", samples.image());
  }

  Outcome run(std::vector<std::string> words) const {
    words.insert(words.begin(), "calibrate");
    return run_tessera(words);
  }
  /// A plan of the samples with more flags.
  nlohmann::json plan(const std::vector<std::string>& more) const {
    std::vector<std::string> words = {path_,       "--model", "m",  "--out", folder_ / "plan.json",
                                      "--no-plot", "--dtype", "f16"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    const Result<AdaptivePlan> loaded = AdaptivePlan::load(folder_ / "plan.json", "m");
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    return nlohmann::json::parse(read_file(folder_ / "plan.json"));
  }
  static std::string precisions(const nlohmann::json& plan) {
    std::string text;
    for (const auto& entry : plan["entries"]) {
      text += (text.empty() ? "" : " ") + entry["precision"].get<std::string>();
    }
    return text;
  }

  TemporaryFolder folder_;
  std::string path_;
};

TEST_F(Calibrate, WritesAPlanThatTheLibraryReads) {
  const nlohmann::json json = plan({"--fraction", "0.5"});
  EXPECT_EQ(precisions(json), "sage4 sage4 sage8 sage8");
  const Result<AdaptivePlan> plan = AdaptivePlan::load(folder_ / "plan.json", "m");
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->heads_q(), kHeads);
  EXPECT_EQ(plan->head_dim(), kHeadDim);
  EXPECT_EQ(plan->choose(1, 1)->precision, Precision::sage8);
  EXPECT_EQ(plan->choose(0, 1)->precision, Precision::sage4);
  EXPECT_FALSE(plan->choose(2, 0).ok());
}

TEST_F(Calibrate, MeetsItsTargetsOnEveryEntry) {
  const nlohmann::json free = plan({});
  double hard8 = 0, hard4 = 1;
  for (int i = 2; i < 4; ++i) {
    hard8 = std::max(hard8, free["entries"][i]["sage8"]["relative_l1"].get<double>());
    hard4 = std::min(hard4, free["entries"][i]["sage4"]["relative_l1"].get<double>());
  }
  ASSERT_LT(hard8, hard4);
  const double target = (hard8 + hard4) / 2;
  const nlohmann::json json = plan({"--max-l1", std::to_string(target)});
  for (const auto& entry : json["entries"]) {
    const std::string precision = entry["precision"];
    EXPECT_LE(entry[precision]["relative_l1"].get<double>(), target) << entry;
    if (precision == "sage8") {
      EXPECT_GT(entry["sage4"]["relative_l1"].get<double>(), target);
    }
  }
  EXPECT_EQ(precisions(plan({"--max-l1", "0.0001"})), "exact exact exact exact");
  EXPECT_EQ(precisions(plan({"--min-cosine", "-1"})), "sage4 sage4 sage4 sage4");
}

TEST_F(Calibrate, HeldOutSamplesPassOrFail) {
  Tensors alike, worse;
  alike.add_sample("layer0.step0", 1, false);
  worse.add_sample("layer0.step0", 4, true);
  const std::string good = folder_.write("alike.safetensors", alike.image());
  const std::string bad = folder_.write("worse.safetensors", worse.image());
  const std::vector<std::string> words = {
      path_, "--model", "m", "--out", folder_ / "p.json", "--no-plot", "--held-out"};
  std::vector<std::string> pass = words, miss = words;
  pass.push_back(good);
  miss.push_back(bad);
  EXPECT_EQ(run(pass).exit_code, 0);
  const Outcome missed = run(miss);
  EXPECT_EQ(missed.exit_code, 1) << missed.out;
  EXPECT_NE(missed.out.find("FAIL"), std::string::npos);
  EXPECT_TRUE(AdaptivePlan::load(folder_ / "p.json", "m").ok());
}

TEST_F(Calibrate, TheWorstOfSeveralSamplesCounts) {
  Tensors more;
  more.add_sample("layer0.step0", 5, true);
  const std::string file = folder_.write("more.safetensors", more.image());
  const nlohmann::json one = plan({});
  const nlohmann::json both = plan({file});
  EXPECT_EQ(both["entries"][0]["samples"], 2);
  EXPECT_GT(both["entries"][0]["sage4"]["relative_l1"].get<double>(),
            one["entries"][0]["sage4"]["relative_l1"].get<double>());
}

TEST_F(Calibrate, ReadsNpyFilesByName) {
  const auto values = tokens(1, false);
  for (int part = 0; part < 3; ++part) {
    folder_.write(std::string("layer0.step0.") + "qkv"[part] + ".npy",
                  npy_f32("1,2,48,16", values[part]));
  }
  const Outcome outcome = run({folder_ / "layer0.step0.q.npy", folder_ / "layer0.step0.k.npy",
                               "--model", "m", "--out", folder_ / "p.json", "--no-plot"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(read_file(folder_ / "p.json"))["entries"].size(), 1u);
}

TEST_F(Calibrate, AdaptiveRunsWhatThePlanSays) {
  plan({"--fraction", "0.5"});
  const auto output = [&](const std::string& layer, const std::vector<std::string>& precision) {
    std::vector<std::string> words = {"run", "--dtype", "f16", "--out", folder_ / "o.npy"};
    for (const char* part : {"q", "k", "v"}) {
      words.push_back(std::string("--") + part);
      words.push_back(path_ + ":layer" + layer + ".step1." + part);
    }
    words.insert(words.end(), precision.begin(), precision.end());
    const Outcome outcome = run_tessera(words);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return read_file(folder_ / "o.npy");
  };
  for (const char* layer : {"0", "1"}) {
    const std::string adaptive =
        output(layer, {"--precision", "adaptive", "--plan", folder_ / "plan.json", "--layer", layer,
                       "--step", "1"});
    const std::string sage4 = output(layer, {"--precision", "sage4"});
    const std::string sage8 = output(layer, {"--precision", "sage8"});
    EXPECT_NE(sage4, sage8);
    EXPECT_EQ(adaptive, *layer == '0' ? sage4 : sage8);
  }
}

TEST_F(Calibrate, SaysInOneLineWhatIsWrong) {
  Tensors partial, nameless, other, infinite;
  partial.add("layer0.q", kHeads, tokens(1, false)[0]);
  nameless.add_sample("block7", 1, false);
  other.add_sample("layer2.step0", 1, false, 3);
  auto values = tokens(1, false);
  values[1][5] = INFINITY;
  for (int part = 0; part < 3; ++part) {
    infinite.add(std::string("layer0.") + "qkv"[part], kHeads, values[part]);
  }
  folder_.write("partial.safetensors", partial.image());
  folder_.write("nameless.safetensors", nameless.image());
  folder_.write("other.safetensors", other.image());
  folder_.write("infinite.safetensors", infinite.image());
  folder_.write("broken.safetensors", "hello");
  folder_.write("layer0.q.npy", npy_f32("1,2,48,16", tokens(1, false)[0]));
  const std::size_t files = folder_.names().size();
  const std::string at = folder_ / "";
  const auto expect_refused = [&](const std::vector<std::string>& words, const std::string& line) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.exit_code, 2) << outcome.out;
    EXPECT_EQ(outcome.err, "tessera: " + line + "\n");
    EXPECT_EQ(folder_.names().size(), files) << line;
  };
  const auto with = [&](const std::string& samples, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {samples, "--model", "m", "--out", at + "p.json"});
    return more;
  };
  expect_refused({}, "SAMPLES: absent, expected FILE.safetensors or NAME.q.npy");
  expect_refused({path_, "--out", at + "p.json"}, "--model: absent, expected the model's name");
  expect_refused({path_, "--model", "m"}, "--out: absent, expected a file for the plan");
  expect_refused(with(path_, {"--fraction", "1.5"}),
                 "--fraction: 1.5, expected a number in [0, 1]");
  expect_refused(with(path_, {"--fraction", "most"}), "--fraction: most, expected a number");
  expect_refused(with(path_, {"--min-cosine", "2"}),
                 "--min-cosine: 2, expected a number in [−1, 1]");
  expect_refused(with(path_, {"--max-l1", "nan"}),
                 "--max-l1: nan, expected a number of at least 0");
  expect_refused(with(path_, {"--no-plot", "--plot", "x"}),
                 "--plot: x, expected no --no-plot with it");
  expect_refused(with(at + "none.safetensors"),
                 "SAMPLES " + at + "none.safetensors: cannot open: No such file or directory");
  expect_refused(
      with(at + "partial.safetensors"),
      "SAMPLES " + at + "partial.safetensors: no tensor 'layer0.k', expected it beside 'layer0.q'");
  expect_refused(with(at + "nameless.safetensors"),
                 "SAMPLES " + at +
                     "nameless.safetensors: tensors of 'block7', expected names layerL.stepS.q or "
                     "layerL.q, and so k and v");
  expect_refused(with(path_, {at + "other.safetensors", "--no-plot"}),
                 "SAMPLES " + at + "other.safetensors:layer2.step0: heads 3/3, head dim 16, " +
                     "expected the first sample's 2/2, 16");
  expect_refused(with(at + "infinite.safetensors"),
                 "SAMPLES " + at +
                     "infinite.safetensors:layer0: element 5 of k is inf, expected finite numbers");
  expect_refused(
      with(at + "broken.safetensors"),
      "SAMPLES " + at +
          "broken.safetensors: not a safetensors file: expected an 8-byte header length");
  expect_refused(with(at + "layer0.q.npy"), "SAMPLES " + at + "layer0.q.npy: no file " + at +
                                                "layer0.k.npy, expected it beside the other two");
  expect_refused(with(path_, {"--held-out", at + "other.safetensors", "--no-plot"}),
                 "--held-out " + at +
                     "other.safetensors:layer2.step0: layer 2 step 0, expected one that has "
                     "samples");
}

}  // namespace
}  // namespace tessera::cli::test
