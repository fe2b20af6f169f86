// The tuner of tessera bench: what it reads, forces and prints. GPUs are measured in gpu_test.cpp.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "app.hpp"
#include "bench/tune.hpp"
#include "device/device.hpp"
#include "error.hpp"

namespace tessera::cli::bench {
namespace {

TEST(Tune, ReadsTheConfigsOfAnExplanation) {
  const std::string text =
      "forward cuda bf16\n  cuda_sm90      chosen: 192x128-q2k4v4 shared=176K "
      "configs=192x128-q2k4v4|256x64-q2k8v8-free, workspace 4 bytes\n";
  EXPECT_EQ(configs_in(text), (std::vector<std::string>{"192x128-q2k4v4", "256x64-q2k8v8-free"}));
  EXPECT_EQ(configs_in("configs=one"), (std::vector<std::string>{"one"}));
  EXPECT_TRUE(configs_in("  cuda_generic   chosen: tile=32x32\n").empty());
}

TEST(Tune, ForcesAConfigWhileAPlanIsMade) {
  constexpr const char* kName = "TESSERA_SM90_FORWARD";
  unsetenv(kName);
  {
    const ForcedConfig none("");
    EXPECT_EQ(std::getenv(kName), nullptr);
  }
  setenv(kName, "before", 1);
  {
    const ForcedConfig forced("128x128-q2k3v2");
    EXPECT_STREQ(std::getenv(kName), "128x128-q2k3v2");
  }
  EXPECT_STREQ(std::getenv(kName), "before");
  unsetenv(kName);
}

Record record(std::int64_t seq, bool causal, const std::string& config, double ms) {
  Record r;
  r.problem.seq_q = r.problem.seq_kv = seq;
  r.problem.causal = causal;
  r.variant.config = config;
  r.flops = 1e12;
  r.ms = ms;
  return r;
}

TEST(Tune, PrintsTheFastestOfEveryProblem) {
  const std::string table = tuned_table({record(512, false, "a", 4), record(512, false, "b", 2),
                                         record(1024, false, "a", 1), record(1024, false, "b", 2),
                                         record(1024, true, "a", 5)});
  EXPECT_NE(table.find("{64, 64, false, 512, \"b\"},  // 500 TFLOP/s, 2.000 of a\n"),
            std::string::npos)
      << table;
  EXPECT_NE(table.find("{64, 64, false, 1024, \"a\"},  // 1000 TFLOP/s, 1.000 of a\n"),
            std::string::npos);
  EXPECT_NE(table.find("{64, 64, true, 1024, \"a\"}"), std::string::npos);
}

TEST(Tune, SaysWhatIsMissingWithoutAGpu) {
  if (device::count(DeviceType::cuda) > 0) GTEST_SKIP() << "there is a GPU";
  const char* const arguments[] = {"tessera", "bench", "tune-sm90", "--device", "cuda"};
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_app(5, arguments), kBadInput);
  const std::string error = testing::internal::GetCapturedStderr();
  EXPECT_EQ(error.find("tessera: --device: cuda, expected cpu or cuda[:N]"), 0u) << error;
}

}  // namespace
}  // namespace tessera::cli::bench
