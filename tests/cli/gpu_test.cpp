// The commands on a GPU; every test is skipped, by name, where there is none.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/process.hpp"
#include "cli/temporary_folder.hpp"
#include "device/device.hpp"
#include "load_case.hpp"

namespace tessera::cli::test {
namespace {

class GpuCommands : public testing::Test {
 protected:
  void SetUp() override {
    if (device::count(DeviceType::cuda) == 0) GTEST_SKIP() << "no CUDA device";
  }

  std::string path(const std::string& name) const { return folder_ / name; }

  TemporaryFolder folder_;
};

const std::string kData = std::string(TESSERA_DATA) + "/gpt_hd64.safetensors";

TEST_F(GpuCommands, ExplainNamesTheRowsOfTheDevice) {
  const Outcome outcome = run_tessera({"explain", "--device", "cuda", "--with", "block-mask"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("forward cuda f32"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("cuda_generic"), std::string::npos) << outcome.out;
  EXPECT_EQ(outcome.out.find("cpu_"), std::string::npos) << outcome.out;
}

TEST_F(GpuCommands, CheckPassesOnEveryRow) {
  for (const char* device : {"cuda", "cuda:0"}) {
    const Outcome outcome = run_tessera({"check", "--device", device});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
    EXPECT_NE(outcome.out.find("cuda_generic"), std::string::npos) << outcome.out;
    EXPECT_NE(outcome.out.find(" 0 failed"), std::string::npos) << outcome.out;
  }
}

TEST_F(GpuCommands, CheckTakesFiles) {
  const Outcome outcome =
      run_tessera({"check", "--device", "cuda", "--q", kData + ":q", "--k", kData + ":k", "--v",
                   kData + ":v", "--causal", "--deterministic"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
}

/// f32 on both: the results differ by roundings alone.
TEST_F(GpuCommands, RunWritesWhatTheCpuDoes) {
  for (const std::string device : {"cpu", "cuda"}) {
    const Outcome outcome =
        run_tessera({"run", "--device", device, "--dtype", "f32", "--q", kData + ":q", "--k",
                     kData + ":k", "--v", kData + ":v", "--causal", "--dout", kData + ":v", "--out",
                     path("o-" + device + ".npy"), "--dq", path("dq-" + device + ".npy")});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("forward   " + device + "_"), std::string::npos) << outcome.out;
  }
  for (const std::string name : {"o-", "dq-"}) {
    TensorFiles files;
    const HostTensor cpu = files.load("cpu", path(name + "cpu.npy"), DType::f32);
    const HostTensor cuda = files.load("cuda", path(name + "cuda.npy"), DType::f32);
    ASSERT_EQ(cpu.sizes(), cuda.sizes());
    double largest = 0, difference = 0;
    for (std::int64_t i = 0; i < cpu.elements(); ++i) {
      largest = std::max(largest, std::abs(cpu.at(i)));
      difference = std::max(difference, std::abs(cpu.at(i) - cuda.at(i)));
    }
    EXPECT_LE(difference, 1e-4 * largest) << name;
  }
}

TEST_F(GpuCommands, BenchMeasuresEveryDtypeAndPass) {
  const Outcome outcome = run_tessera(
      {"bench", "--device", "cuda", "--seq", "100,256", "--dtype", "f32,f16,bf16", "--pass", "both",
       "--pattern", "dense,random", "--budget", "0.001", "--json", path("records.json")});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto records = nlohmann::json::parse(read_file(path("records.json")));
  EXPECT_EQ(records.size(), 2u * 3 * 2 * 2);
  for (const auto& record : records) {
    EXPECT_EQ(record["device"], "cuda");
    EXPECT_GT(record["ms"], 0);
    EXPECT_GT(record["copy_gbytes_per_s"], 0);
    EXPECT_NE(record["gpu"], "");
    EXPECT_NE(record["driver"], "");
  }
}

TEST_F(GpuCommands, BenchTakesNoThreads) {
  const Outcome outcome =
      run_tessera({"bench", "--device", "cuda", "--seq", "64", "--threads", "2"});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_TRUE(outcome.one_error_line()) << outcome.err;
  EXPECT_NE(outcome.err.find("--threads: 2"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace tessera::cli::test
