#include "check/accuracy.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "error.hpp"
#include "planned_case.hpp"

namespace tessera::cli {
namespace {

void expect_finite(const std::string& name, const char* what, const HostTensor& tensor) {
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    if (!std::isfinite(tensor.at(i))) {
      fail("{}: element {} of {} is {}, expected finite numbers", name, i, what, tensor.at(i));
    }
  }
}

HostTensor exact_output(const AttentionCase& c, const AccuracyMeter::Place& place) {
  AttentionCase single = c.converted(DType::f32);
  single.attention.precision = Precision::exact;
  single.attention.quantization = {};
  try {
    PlannedCase planned(single, plan_options(single, {}, "", place.executor), place.device);
    Results results = allocate_results(single, {});
    planned.forward(results);
    return std::move(results.o);
  } catch (const Error& error) {
    fail("{}: {}", c.name, error.what());
  }
}

}  // namespace

AccuracyMeter::AccuracyMeter(AttentionCase attention_case, Place place)
    : case_(std::move(attention_case)), place_(std::move(place)) {
  // Keys behind used lengths are not data.
  const bool all_used = !case_.kv_lens.present() && !case_.q_lens.present() && !case_.packed();
  if (all_used) {
    expect_finite(case_.name, "q", case_.q);
    expect_finite(case_.name, "k", case_.k);
    expect_finite(case_.name, "v", case_.v);
  }
  exact_ = exact_output(case_, place_);
  expect_finite(case_.name, "exact attention", exact_);
}

Accuracy AccuracyMeter::measure(Precision precision, const Quantization& scheme) {
  case_.attention.precision = precision;
  case_.attention.quantization = scheme;
  case_.attention.adaptive_plan = nullptr;
  return run();
}

Accuracy AccuracyMeter::measure(const AdaptivePlan& plan, std::int64_t layer, std::int64_t step) {
  case_.attention.precision = Precision::adaptive;
  case_.attention.quantization = {};
  case_.attention.adaptive_plan = &plan;
  case_.attention.layer = layer;
  case_.attention.step = step;
  return run();
}

Accuracy AccuracyMeter::run() {
  Accuracy accuracy;
  const PlanOptions options = plan_options(case_, {}, place_.implementation, place_.executor);
  BlockMaskView block_mask;
  const Inputs inputs = described_on(place_.device, case_.inputs(), block_mask);
  const Status status = Plan::create(case_.attention, inputs, options).status();
  if (status.code() == StatusCode::unsupported) {
    accuracy.rejection = status.message();
    return accuracy;
  }
  if (!status.ok()) fail("{}: {}", case_.name, status.message());
  PlannedCase planned(case_, options, place_.device);
  Results results = allocate_results(case_, {});
  planned.forward(results);
  accuracy.row = planned.plan().forward_implementation();

  const HostTensor& o = results.o;
  const std::int64_t heads = case_.packed() ? o.size(1) : o.size(0) * o.size(case_.bshd ? 2 : 1);
  DifferenceSum all;
  std::vector<DifferenceSum> by_head(static_cast<std::size_t>(heads));
  for (std::int64_t i = 0; i < o.elements(); ++i) {
    const double x = o.at(i), y = exact_.at(i);
    all.add(x, y);
    by_head[static_cast<std::size_t>(head_of(i))].add(x, y);
  }
  accuracy.all = all.get();
  for (const DifferenceSum& head : by_head) {
    accuracy.worst_cosine = std::min(accuracy.worst_cosine, head.get().cosine);
    accuracy.worst_l1 = std::max(accuracy.worst_l1, head.get().relative_l1);
  }
  return accuracy;
}

std::int64_t AccuracyMeter::head_of(std::int64_t index) const {
  const HostTensor& o = exact_;
  if (case_.packed()) return index / o.size(2) % o.size(1);
  const std::int64_t plane = o.size(2) * o.size(3);
  if (!case_.bshd) return index / plane;
  return index / plane / o.size(1) * o.size(2) + index / o.size(3) % o.size(2);
}

}  // namespace tessera::cli
