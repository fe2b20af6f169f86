// Plan files: what is read, what is refused and why, and how precision = adaptive uses them.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/case.hpp"
#include "tessera/attention.hpp"

namespace tessera::test {
namespace {

const char* const kPlan = R"({
  "format": "tessera-adaptive-plan", "version": 1, "model": "toy",
  "heads_q": 2, "heads_kv": 2, "head_dim": 64,
  "quantization": {"granularity": "warp", "smooth_q": "automatic", "smooth_k": true,
                   "smooth_v": false, "pv": "half"},
  "entries": [{"layer": 0, "step": 0, "precision": "sage4"},
              {"layer": 1, "step": 0, "precision": "sage8", "cosine": 0.9999},
              {"layer": 2, "step": 5, "precision": "exact"}]
})";

std::string with(std::string from, std::string to) {
  std::string text = kPlan;
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(AdaptivePlan, GivesWhatItsFileSays) {
  const Result<AdaptivePlan> plan = AdaptivePlan::parse(kPlan, "toy");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->model(), "toy");
  EXPECT_EQ(plan->choose(0, 0)->precision, Precision::sage4);
  EXPECT_EQ(plan->choose(1, 0)->precision, Precision::sage8);
  EXPECT_EQ(plan->choose(1, 0)->quantization.granularity, ScaleGranularity::warp);
  EXPECT_EQ(plan->choose(1, 0)->quantization.pv, PvFormat::half);
  EXPECT_EQ(plan->choose(2, 5)->precision, Precision::exact);
  const Status status = plan->choose(2, 6).status();
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_NE(status.message().find("layer 2 step 6"), std::string::npos) << status.message();
}

TEST(AdaptivePlan, RefusesWhatItDoesNotUnderstand) {
  struct Wrong {
    std::string text, says;
  };
  const std::vector<Wrong> all = {
      {"", "not a JSON object"},
      {"[]", "not a JSON object"},
      {"{\"format\"", "not a JSON object"},
      {with("tessera-adaptive-plan", "other"), "format: other"},
      {with("\"version\": 1", "\"version\": 2"), "version: 2, expected 1"},
      {with("\"version\": 1", "\"version\": 1.5"), "version: 1.5"},
      {with("\"model\"", "\"modell\""), "model: absent"},
      {with("\"heads_q\": 2", "\"heads_q\": 0"), "heads_q: 0"},
      {with("\"head_dim\": 64", "\"head_dim\": 18446744073709551615"), "head_dim"},
      {with("\"warp\"", "\"wrap\""), "granularity: wrap, expected one of automatic, tensor"},
      {with("\"smooth_k\": true", "\"smooth_k\": 1"), "smooth_k: 1"},
      {with("\"pv\": \"half\"", "\"pv\": 8"), "pv: 8"},
      {with("\"layer\": 1", "\"layer\": -1"), "layer: -1"},
      {with("\"layer\": 1", "\"layer\": 0"), "layer 0 step 0 twice"},
      {with("\"sage8\"", "\"adaptive\""), "precision: adaptive"},
      {with("{\"layer\": 0, \"step\": 0, \"precision\": \"sage4\"}", "7"), "entries: 7"},
  };
  for (const Wrong& wrong : all) {
    const Status status = AdaptivePlan::parse(wrong.text).status();
    EXPECT_EQ(status.code(), StatusCode::invalid_argument) << wrong.text;
    EXPECT_NE(status.message().find(wrong.says), std::string::npos) << status.message();
  }
  EXPECT_NE(AdaptivePlan::parse(kPlan, "other").status().message().find("model: toy"),
            std::string::npos);
  EXPECT_NE(AdaptivePlan::load("/no/such/file").status().message().find("/no/such/file"),
            std::string::npos);
}

Status planned(const AdaptivePlan* adaptive_plan, std::int64_t layer, std::int64_t step,
               Precision precision, std::int64_t head_dim, std::string& text) {
  Case c;
  c.head_dim = c.head_dim_v = head_dim;
  const Workload w = make_workload(c);
  Attention attention;
  attention.precision = precision;
  attention.adaptive_plan = adaptive_plan;
  attention.layer = layer;
  attention.step = step;
  PlanOptions options;
  options.backward = true;
  const Result<Plan> plan = Plan::create(attention, w.inputs(), options);
  if (plan.ok()) text = plan->explain();
  return plan.status();
}

TEST(AdaptivePlan, ChoosesThePrecisionOfAPlan) {
  const AdaptivePlan plan = AdaptivePlan::parse(kPlan).value();
  std::string text;
  ASSERT_TRUE(planned(&plan, 0, 0, Precision::adaptive, 64, text).ok());
  EXPECT_NE(text.find("sage4 scales=warp smooth_q=tensor"), std::string::npos) << text;
  ASSERT_TRUE(planned(&plan, 1, 0, Precision::adaptive, 64, text).ok());
  EXPECT_NE(text.find("sage8 scales=warp smooth_q=none"), std::string::npos) << text;
  ASSERT_TRUE(planned(&plan, 2, 5, Precision::adaptive, 64, text).ok());
  EXPECT_EQ(text.find(" scales="), std::string::npos) << text;

  const auto refused = [&](const Status& status, const char* says) {
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    EXPECT_NE(status.message().find(says), std::string::npos) << status.message();
  };
  refused(planned(&plan, 3, 0, Precision::adaptive, 64, text), "layer 3 step 0");
  refused(planned(&plan, 0, 0, Precision::adaptive, 80, text), "head dim 64, expected");
  refused(planned(nullptr, 0, 0, Precision::adaptive, 64, text), "adaptive_plan: absent");
  refused(planned(&plan, 0, 0, Precision::sage8, 64, text), "adaptive_plan: present");
}

}  // namespace
}  // namespace tessera::test
