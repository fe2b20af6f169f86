// Records: what they compare, their JSON, their table and their plots.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bench/plot.hpp"
#include "bench/record.hpp"
#include "bench/report.hpp"

namespace tessera::cli::bench {
namespace {

Record record(const std::string& impl, int threads, double ms, Pattern pattern = Pattern::dense,
              std::int64_t seq = 1024) {
  Record r;
  r.suite = "core";
  r.problem.seq_q = r.problem.seq_kv = seq;
  r.variant.threads = threads;
  r.variant.mask.pattern = pattern;
  r.impl = impl;
  r.flops = 8e9;
  r.samples = 3;
  r.ms = ms;
  r.ms_min = ms / 2;
  r.ceiling_gflops = 100;
  r.ceiling_gflops_best = 125;
  r.ceiling = "avx2";
  r.peak_extra_bytes = 3 << 20;
  r.copy_gbytes_per_s = 20;
  if (pattern != Pattern::dense) {
    r.density = 0.25;
    r.blocks = 64;
  }
  return r;
}

std::vector<Record> group() {
  std::vector<Record> records{record("cpu_avx2", 1, 100), record("cpu_avx2", 2, 50),
                              record("standard", 1, 300), record("standard", 2, 200),
                              record("cpu_avx2", 2, 10, Pattern::butterfly)};
  compare(records);
  return records;
}

Machine machine() { return {"2026-01-02T03:04:05Z", "A \"CPU\"", 2, "1.2.3", "abc", "SomeBLAS"}; }

TEST(Records, RatesFollowFromTimes) {
  const Record r = record("cpu_avx2", 1, 100);
  EXPECT_DOUBLE_EQ(r.gflops(), 80);
  EXPECT_DOUBLE_EQ(r.share(), 0.8);
  EXPECT_DOUBLE_EQ(r.share_best(), 160.0 / 125);
  EXPECT_DOUBLE_EQ(r.gbytes_per_s(), 4 * 1024 * 64 * 4 / 0.1 * 1e-9);
}

TEST(Records, CompareLikeWithLike) {
  const std::vector<Record> records = group();
  EXPECT_DOUBLE_EQ(*records[0].speedup_over_standard, 3);
  EXPECT_FALSE(records[0].speedup_over_one_thread);
  EXPECT_DOUBLE_EQ(*records[1].speedup_over_standard, 4);
  EXPECT_DOUBLE_EQ(*records[1].speedup_over_one_thread, 2);
  EXPECT_FALSE(records[2].speedup_over_standard);
  EXPECT_DOUBLE_EQ(*records[3].speedup_over_one_thread, 1.5);
  EXPECT_DOUBLE_EQ(*records[4].speedup_over_standard, 20);
  EXPECT_DOUBLE_EQ(*records[4].speedup_over_dense, 5);
  EXPECT_FALSE(records[4].speedup_over_one_thread);
}

TEST(Records, JsonIsAListWithEveryKey) {
  const auto json = nlohmann::json::parse(to_json(group(), machine()));
  ASSERT_TRUE(json.is_array());
  ASSERT_EQ(json.size(), 5u);
  for (const auto& entry : json) {
    for (const char* key : {"suite",          "impl",           "device",   "pass",
                            "dtype",          "batch",          "heads_q",  "heads_kv",
                            "seq_q",          "seq_kv",         "head_dim", "head_dim_v",
                            "causal",         "density",        "threads",  "ms",
                            "gflops",         "ceiling_gflops", "share",    "peak_extra_bytes",
                            "waited_for_cpu", "date",           "cpu",      "version",
                            "commit"}) {
      EXPECT_TRUE(entry.contains(key)) << key;
    }
  }
  EXPECT_EQ(json[0]["impl"], "cpu_avx2");
  EXPECT_EQ(json[0]["speedup_over_one_thread"], nullptr);
  EXPECT_EQ(json[0]["cpu"], "A \"CPU\"");
  EXPECT_EQ(json[0]["ceiling"], "avx2");
  EXPECT_DOUBLE_EQ(json[1]["share"], 1.6);
  EXPECT_EQ(json[4]["pattern"], "butterfly");
  EXPECT_DOUBLE_EQ(json[4]["us_per_block"], 10e3 / 64);
}

TEST(Report, LeavesOutEmptyColumns) {
  const std::string full = table(group());
  EXPECT_NE(full.find("vs standard"), std::string::npos);
  EXPECT_NE(full.find("us/block"), std::string::npos);
  EXPECT_NE(full.find("butterfly 25.0%"), std::string::npos);
  EXPECT_EQ(full.find("GB/s"), std::string::npos);
  const std::string plain = table({record("cpu_avx2", 1, 100)});
  EXPECT_EQ(plain.find("vs "), std::string::npos);
  EXPECT_NE(plain.find("80.0%"), std::string::npos);
}

TEST(Report, AGpusCeilingMayBeUnknown) {
  Record r = record("cuda_generic", 1, 0.01);
  r.device = {DeviceType::cuda, 0};
  r.ceiling_gflops = 1.6e6;
  const std::string known = table({r});
  EXPECT_NE(known.find("TFLOP/s"), std::string::npos) << known;
  EXPECT_NE(known.find("1600.0"), std::string::npos) << known;
  EXPECT_NE(known.find("50.0%"), std::string::npos) << known;
  EXPECT_EQ(known.find("threads"), std::string::npos) << known;
  r.ceiling_gflops = r.ceiling_gflops_best = 0;
  const std::string unknown = table({r});
  EXPECT_NE(unknown.find("unknown"), std::string::npos) << unknown;
  EXPECT_EQ(unknown.find("share"), std::string::npos) << unknown;
  const auto json = nlohmann::json::parse(to_json({r}, machine()));
  EXPECT_EQ(json[0]["device"], "cuda");
  EXPECT_EQ(json[0]["ceiling_gflops"], nullptr);
  EXPECT_EQ(json[0]["share"], nullptr);
}

TEST(Report, TellsOfOtherProgramsOnTheMachine) {
  std::vector<Record> records = group();
  EXPECT_EQ(disturbance(records), "");
  records[1].waited = 0.4;
  EXPECT_NE(disturbance(records).find("40%"), std::string::npos);
}

TEST(Report, FormatsNumbersShortly) {
  EXPECT_EQ(format_ms(0.01234), "0.0123");
  EXPECT_EQ(format_ms(12.345), "12.35");
  EXPECT_EQ(format_ms(12345.6), "12346");
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(12 << 20), "12.0 MiB");
  EXPECT_EQ(format_bytes(std::int64_t{4} << 30), "4.00 GiB");
}

TEST(Plots, OneCurveForEachMethod) {
  std::vector<Record> records;
  for (std::int64_t seq : {2048, 1024}) {
    records.push_back(record("cpu_avx2", 2, 10, Pattern::dense, seq));
    records.push_back(record("standard", 2, 20, Pattern::dense, seq));
    records.push_back(record("cpu_avx2", 2, 5, Pattern::butterfly, seq));
  }
  EXPECT_TRUE(can_plot(records));
  EXPECT_FALSE(can_plot(group()));
  const std::vector<Series> series = series_of(records);
  ASSERT_EQ(series.size(), 3u);
  EXPECT_EQ(series[0].title, "exact (cpu_avx2)");
  EXPECT_EQ(series[1].title, "standard");
  EXPECT_EQ(series[2].title, "block-sparse butterfly (cpu_avx2)");
  EXPECT_EQ(series[0].seq, (std::vector<std::int64_t>{1024, 2048}));
  EXPECT_EQ(common_label(records), "forward, f32, non-causal, batch 1, 1 head, D 64, 2 threads");
}

TEST(Plots, ScriptsQuoteText) {
  const std::vector<Series> series{{"it's `date`", {1024, 2048}, {1, 4}, {1 << 20, 2 << 20}}};
  const std::string script = plot_script(Quantity::memory, series, "a 'b'", "/tmp/x.svg");
  EXPECT_NE(script.find("'it''s `date`'"), std::string::npos);
  EXPECT_NE(script.find("set label 1 'a ''b'''"), std::string::npos);
  EXPECT_NE(script.find("'1k' 1024, '2k' 2048"), std::string::npos);
  EXPECT_NE(script.find("1024 1\n2048 2\n"), std::string::npos);
  EXPECT_NE(script.find("set terminal svg"), std::string::npos);
}

}  // namespace
}  // namespace tessera::cli::bench
