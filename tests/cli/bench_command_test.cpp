// tessera bench as a command: its exit codes, one-line errors and files.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "app.hpp"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int exit_code;
  std::string out, err;
};

Outcome bench(std::vector<std::string> arguments) {
  std::vector<const char*> argv{"tessera", "bench"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int exit_code = run_app(static_cast<int>(argv.size()), argv.data());
  return {exit_code, testing::internal::GetCapturedStdout(),
          testing::internal::GetCapturedStderr()};
}

class BenchCommand : public testing::Test {
 protected:
  BenchCommand() : folder_(fs::path(testing::TempDir()) / "tessera_bench_command_test") {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~BenchCommand() override { fs::remove_all(folder_); }

  std::string file(const std::string& name) const { return (folder_ / name).string(); }

 private:
  fs::path folder_;
};

TEST_F(BenchCommand, MeasuresFreeShapes) {
  const Outcome outcome =
      bench({"--seq", "64,128", "--heads", "2", "--pass", "both", "--dtype", "f32,bf16",
             "--causal=both", "--threads", "1,2", "--budget", "0.001", "--json", file("a.json")});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_NE(outcome.out.find("GFLOP/s"), std::string::npos);
  std::ifstream json_file(file("a.json"));
  const auto json = nlohmann::json::parse(json_file);
  int tessera_records = 0;
  for (const auto& record : json) {
    EXPECT_GT(record["ms"], 0);
    EXPECT_GT(record["ceiling_gflops"], 0);
    tessera_records += record["impl"] == "standard" ? 0 : 1;
  }
  EXPECT_EQ(tessera_records, 2 * 2 * 2 * 2 * 2);
}

TEST_F(BenchCommand, DrawsPlots) {
  const Outcome outcome = bench({"--seq", "64,128", "--pattern", "dense,random", "--budget",
                                 "0.001", "--block-size", "16", "--plot", file("sub/p")});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  if (outcome.out.find("no plots") != std::string::npos) GTEST_SKIP() << "no gnuplot";
  for (const char* name : {"p-runtime.png", "p-runtime.svg", "p-memory.png", "p-memory.svg"}) {
    EXPECT_GT(fs::file_size(file(std::string("sub/") + name)), 1000u) << name;
  }
}

TEST_F(BenchCommand, BadInputIsOneLineThatNamesTheArgument) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{}, "suite"},
      {{"nonsense"}, "nonsense"},
      {{"--seq", "0"}, "--seq"},
      {{"--seq", "12x"}, "--seq"},
      {{"--seq", "64", "--head-dim", "513"}, "--head-dim"},
      {{"--seq", "64", "--dtype", "f64"}, "--dtype"},
      {{"--seq", "64", "--heads", "4", "--heads-kv", "3"}, "--heads-kv"},
      {{"--seq", "64", "--impl", "cpu_mmx"}, "--impl"},
      {{"--seq", "64", "--pass", "sideways"}, "--pass"},
      {{"--seq", "64", "--pattern", "plaid"}, "--pattern"},
      {{"--seq", "64", "--density", "0"}, "--density"},
      {{"--seq", "64", "--density", "nan"}, "--density"},
      {{"--seq", "64", "--pattern", "random", "--causal"}, "--pattern"},
      {{"--seq", "64", "--block-size", "7"}, "--block-size"},
      {{"--seq", "64", "--window", "1"}, "--window"},
      {{"--seq", "64", "--budget", "0"}, "--budget"},
      {{"--seq", "64", "--device", "abacus"}, "--device"},
      {{"--seq", "64", "--threads", "0"}, "--threads"},
      {{"--seq", "64", "--json", "/no/such/folder/a.json"}, "--json"},
      {{"--seq", "64", "--plot", "/dev/null/p"}, "--plot"},
      {{"core", "--seq", "64"}, "suite"},
      {{"peers"}, "--device cuda"},
      {{"tune-sm90"}, "--device cuda"},
  };
  for (const auto& [arguments, name] : cases) {
    const Outcome outcome = bench(arguments);
    EXPECT_EQ(outcome.exit_code, kBadInput) << name;
    EXPECT_NE(outcome.err.find(name), std::string::npos) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_EQ(outcome.out, "") << name;
  }
}

}  // namespace
}  // namespace tessera::cli
