#include "calibrate/plan_file.hpp"

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "quant/plan_format.hpp"

namespace tessera::cli::calibrate {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const Difference& d) {
  return {{"cosine", d.cosine}, {"relative_l1", d.relative_l1}, {"rmse", d.rmse}};
}

}  // namespace

std::string plan_text(const PlanHeading& heading, const Targets& targets,
                      const std::vector<Entry>& entries) {
  // smooth_q stays automatic: what that means differs between sage8 and sage4.
  Quantization q = resolved(Precision::sage8, heading.quantization);
  q.smooth_q = heading.quantization.smooth_q;
  Json criteria = {{"fraction", targets.fraction_to_use()}};
  if (targets.min_cosine) criteria["min_cosine"] = *targets.min_cosine;
  if (targets.max_l1) criteria["max_l1"] = *targets.max_l1;
  Json plan = {{"format", quant::kPlanFormat},
               {"version", quant::kPlanVersion},
               {"model", heading.model},
               {"heads_q", heading.heads_q},
               {"heads_kv", heading.heads_kv},
               {"head_dim", heading.head_dim},
               {"quantization",
                {{"granularity", name_of(q.granularity)},
                 {"smooth_q", name_of(q.smooth_q)},
                 {"smooth_k", q.smooth_k == Smoothing::on},
                 {"smooth_v", q.smooth_v == Smoothing::on},
                 {"pv", name_of(q.pv)}}},
               {"criteria", criteria},
               {"entries", Json::array()}};
  for (const Entry& entry : entries) {
    plan["entries"].push_back({{"layer", entry.layer},
                               {"step", entry.step},
                               {"precision", name_of(entry.precision)},
                               {"samples", entry.samples},
                               {"sage4", to_json(entry.sage4)},
                               {"sage8", to_json(entry.sage8)}});
  }
  const std::string text =
      plan.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  require(AdaptivePlan::parse(text, heading.model));
  return text;
}

}  // namespace tessera::cli::calibrate
