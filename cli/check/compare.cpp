#include "check/compare.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "error.hpp"
#include "planned_case.hpp"

namespace tessera::cli {
namespace {

Results run_once(const AttentionCase& c, PlannedCase& planned) {
  Results results = allocate_results(c, all_gradients(c));
  planned.forward(results);
  if (c.backward()) planned.backward(results);
  return results;
}

Results run_exact(const AttentionCase& attention_case, Executor* executor) {
  const AttentionCase c = attention_case.converted(DType::f64);
  PlannedCase planned(c, plan_options(c, all_gradients(c), "reference", executor), {});
  return run_once(c, planned);
}

bool same_bits(const HostTensor& x, const HostTensor& y) {
  return std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.bytes())) == 0;
}

// "no implementation accepts … (row: reason)" → "reason"
std::string reason_of(const std::string& message, const std::string& row) {
  const std::string before = "(" + row + ": ";
  const std::size_t at = message.find(before);
  if (at == std::string::npos || !message.ends_with(')')) return message;
  return message.substr(at + before.size(), message.size() - at - before.size() - 1);
}

}  // namespace

void DifferenceSum::add(double out, double reference) {
  ++count_;
  if (out == reference && std::isinf(out)) return;
  if (!std::isfinite(out) || !std::isfinite(reference)) {
    max_abs_ = std::numeric_limits<double>::infinity();
    return;
  }
  const double error = std::abs(out - reference);
  max_abs_ = std::max(max_abs_, error);
  dot_ += out * reference;
  out_squares_ += out * out;
  reference_squares_ += reference * reference;
  l1_ += error;
  reference_l1_ += std::abs(reference);
  squares_ += error * error;
}

Difference DifferenceSum::get() const {
  Difference d;
  d.max_abs = max_abs_;
  const double norms = std::sqrt(out_squares_) * std::sqrt(reference_squares_);
  d.cosine = norms > 0 ? dot_ / norms : out_squares_ == reference_squares_ ? 1 : 0;
  d.relative_l1 = l1_ == 0 ? 0 : l1_ / reference_l1_;
  if (count_ > 0) d.rmse = std::sqrt(squares_ / static_cast<double>(count_));
  return d;
}

Difference difference(const HostTensor& out, const HostTensor& reference) {
  DifferenceSum sum;
  for (std::int64_t i = 0; i < out.elements(); ++i) sum.add(out.at(i), reference.at(i));
  return sum.get();
}

double TensorCheck::severity() const {
  if (!repeatable) return std::numeric_limits<double>::infinity();
  return difference.max_abs / tolerance;
}

Oracle::Oracle(const AttentionCase& attention_case, Executor* executor)
    : case_(attention_case),
      executor_(executor),
      exact_(run_exact(attention_case, executor)),
      naive_(run_naive(attention_case)) {}

double Oracle::tolerance(std::size_t index, DType stored) const {
  const HostTensor& exact = exact_.*kResults[index].tensor;
  const double naive = difference(naive_.results.*kResults[index].tensor, exact).max_abs;
  return 2 * naive + rounding_allowance(naive_, index, case_.q.dtype(), stored, exact);
}

RowCheck Oracle::check(const RowToCheck& row) const {
  RowCheck check;
  check.row = row.name;
  const PlanOptions options = plan_options(case_, all_gradients(case_), row.name, executor_);
  BlockMaskView block_mask;
  const Inputs inputs = described_on(row.device, case_.inputs(), block_mask);
  const Result<Plan> plan = Plan::create(case_.attention, inputs, options);
  if (plan.status().code() == StatusCode::unsupported) {
    check.rejection = reason_of(plan.status().message(), row.name);
    return check;
  }
  const bool same_gradients = row.device.type == DeviceType::cpu || case_.attention.deterministic;
  PlannedCase planned(case_, options, row.device);
  const Results first = run_once(case_, planned);
  const Results second = run_once(case_, planned);
  for (std::size_t index = 0; index < kResults.size(); ++index) {
    const HostTensor& out = first.*kResults[index].tensor;
    if (!out.present()) continue;
    TensorCheck tensor;
    tensor.name = kResults[index].name;
    tensor.backward = index >= kForwardResults;
    tensor.difference = difference(out, exact_.*kResults[index].tensor);
    tensor.tolerance = tolerance(index, out.dtype());
    tensor.repeatable =
        (tensor.backward && !same_gradients) || same_bits(out, second.*kResults[index].tensor);
    check.tensors.push_back(tensor);
  }
  return check;
}

}  // namespace tessera::cli
