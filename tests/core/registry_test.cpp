// The table: its order, how rows are chosen and forced, and what explain() and to_string() say.
#include "core/registry.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/problem.hpp"

namespace tessera {
namespace {

Problem problem(DType dtype = DType::f32) {
  Problem p;
  p.dtype = dtype;
  p.batch = 1;
  p.heads_q = 4;
  p.heads_kv = 2;
  p.seq_q = p.seq_kv = 64;
  p.head_dim = p.head_dim_v = 32;
  return p;
}

TEST(Registry, EveryBackendIsWhole) {
  std::set<DeviceType> devices;
  for (const Backend* backend : backends()) {
    EXPECT_TRUE(devices.insert(backend->device).second);
    EXPECT_EQ(&backend_of(backend->device), backend);
    EXPECT_FALSE(backend->describe().empty());
    EXPECT_EQ(backend->rows.empty(), !backend->absent().empty());
    std::set<std::string_view> names;
    for (const Row& row : backend->rows) {
      EXPECT_TRUE(names.insert(row.name).second) << row.name;
      EXPECT_FALSE(row.supports.empty()) << row.name;
    }
  }
  EXPECT_TRUE(devices.count(DeviceType::cpu));
}

TEST(Registry, TheCpuTableEndsInTheReference) {
  const Backend& cpu = backend_of(DeviceType::cpu);
  ASSERT_FALSE(cpu.rows.empty());
  const Row& last = cpu.rows.back();
  EXPECT_EQ(last.name, "reference");
  EXPECT_EQ(last.unavailable(), "");
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64}) {
    EXPECT_EQ(last.reject(problem(dtype)), "") << name_of(dtype);
  }
}

TEST(Registry, ChoosesTheFirstRowThatAccepts) {
  const std::vector<Candidate> candidates = choose(problem(), "");
  const auto chosen = std::find_if(candidates.begin(), candidates.end(),
                                   [](const Candidate& c) { return c.chosen; });
  ASSERT_NE(chosen, candidates.end());
  for (auto before = candidates.begin(); before != chosen; ++before) {
    EXPECT_NE(before->rejection, "") << before->row->name;
  }
  EXPECT_EQ(std::count_if(candidates.begin(), candidates.end(),
                          [](const Candidate& c) { return c.chosen; }),
            1);
}

TEST(Registry, ForcingPassesOverTheOthers) {
  for (const Candidate& candidate : choose(problem(), "reference")) {
    EXPECT_EQ(candidate.chosen, candidate.row->name == "reference");
  }
  for (const Candidate& candidate : choose(problem(), "no such row"))
    EXPECT_FALSE(candidate.chosen);
}

TEST(Registry, F64IsTheReferencesAlone) {
  for (const Candidate& candidate : choose(problem(DType::f64), "")) {
    EXPECT_EQ(candidate.chosen, candidate.row->name == "reference");
    EXPECT_EQ(candidate.chosen, candidate.rejection.empty()) << candidate.row->name;
  }
}

TEST(Registry, ExactRowsRefuseOtherPrecisionsByName) {
  Problem p = problem();
  for (Precision precision : {Precision::sage8, Precision::sage4}) {
    p.precision = precision;
    p.quantization = resolved(precision, {});
    for (const Candidate& candidate : choose(p, "")) {
      const std::string_view row = candidate.row->name;
      if (row == "reference" || row.find("sage") != std::string_view::npos) continue;
      EXPECT_FALSE(candidate.chosen);
      EXPECT_NE(candidate.rejection, "") << row;
    }
  }
}

TEST(Registry, ImplementationsListsTheTable) {
  std::vector<std::string> names;
  for (const Implementation& row : implementations()) {
    names.push_back(row.name);
    EXPECT_EQ(row.available, row.unavailable.empty()) << row.name;
    EXPECT_NE(row.supports, "");
  }
  std::vector<std::string> expected;
  for (const Backend* backend : backends()) {
    for (const Row& row : backend->rows) expected.emplace_back(row.name);
  }
  EXPECT_EQ(names, expected);
}

TEST(Problem, PrintsWhatMatters) {
  Problem p = problem(DType::bf16);
  p.causal = true;
  p.alignment = Alignment::top_left;
  p.softcap = 30;
  p.block_mask = true;
  p.block_q = p.block_kv = 128;
  const std::string text = to_string(p);
  for (const char* part : {"forward", "cpu", "bf16", "B1", "H4/2", "64x64", "D32", "causal",
                           "top-left", "softcap=30", "128x128"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
  EXPECT_EQ(text.find('\n'), std::string::npos);
}

}  // namespace
}  // namespace tessera
