#include "support/conformance.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/device_copies.hpp"
#include "support/naive.hpp"
#include "support/row_counts.hpp"

namespace tessera::test {
namespace {

/// Whether a row is one that takes every problem like this one: the last of those that take every
/// exact problem in f32, f16 and bf16, and the reference, which takes quantised ones, too.
bool takes_everything(const std::string& row, const Case& c) {
  if (row == "reference") return true;
  const bool last = row == "cpu_portable" || row == "cuda_generic";
  return last && c.attention.precision == Precision::exact;
}

/// One case of how many a reduced sweep runs.
constexpr std::uint64_t kReduction = 6;

struct Named {
  const char* name;
  Tensor Results::*tensor;
  Bound Bounds::*bound;
  double Tolerances::*tolerance;
};

constexpr Named kResults[] = {
    {"o", &Results::o, &Bounds::o, &Tolerances::o},
    {"lse", &Results::lse, &Bounds::lse, &Tolerances::lse},
    {"d_q", &Results::d_q, &Bounds::d_q, &Tolerances::d_q},
    {"d_k", &Results::d_k, &Bounds::d_k, &Tolerances::d_k},
    {"d_v", &Results::d_v, &Bounds::d_v, &Tolerances::d_v},
    {"d_bias", &Results::d_bias, &Bounds::d_bias, &Tolerances::d_bias},
    {"d_sink", &Results::d_sink, &Bounds::d_sink, &Tolerances::d_sink},
};

/// Memory aligned as a workspace must be and no better, between guards.
class GuardedWorkspace {
 public:
  GuardedWorkspace(std::size_t bytes, unsigned char fill, Device device)
      : bytes_(bytes), memory_(value_of(device::Buffer::allocate(bytes + 2 * kGuard, device))) {
    require(device::fill(at(0), kPattern, memory_.bytes()));
    require(device::fill(at(kGuard), fill, bytes));
  }
  void* data() const { return at(kGuard).data; }
  std::size_t bytes() const { return bytes_; }
  bool intact() const {
    unsigned char guards[2 * kGuard];
    require(device::copy({guards, {}}, at(0), kGuard));
    require(device::copy({guards + kGuard, {}}, at(kGuard + bytes_), kGuard));
    return std::all_of(std::begin(guards), std::end(guards),
                       [](unsigned char byte) { return byte == kPattern; });
  }

 private:
  device::Place at(std::size_t offset) const {
    return {static_cast<std::byte*>(memory_.data()) + offset, memory_.device()};
  }

  static constexpr std::size_t kGuard = 64;
  static constexpr unsigned char kPattern = 0xa5;
  std::size_t bytes_;
  device::Buffer memory_;
};

/// All that a run touches, on the row's device.
struct Tensors {
  Inputs inputs;
  Outputs outputs;
  OutputGradients d_outputs;
  InputGradients gradients;
};

/// The stream that every row of a device runs on; not the default one.
const device::Stream& stream_of(Device device) {
  static const device::Stream kStream = value_of(device::Stream::create(device));
  return kStream;
}

PlanOptions plan_options(const Case& c, const Results& results, const std::string& row,
                         Executor* executor) {
  PlanOptions options;
  options.implementation = row;
  options.backward = c.backward;
  options.bias_gradient = results.d_bias.present();
  options.sink_gradient = results.d_sink.present();
  options.executor = executor;
  options.threads = c.threads;
  return options;
}

/// Plans and runs; `stream` is null on the CPU.
Attempt run_tensors(const Case& c, const Tensors& t, const PlanOptions& options,
                    unsigned char workspace_fill, const device::Stream* stream) {
  Attempt attempt;
  const Result<Plan> plan = Plan::create(c.attention, t.inputs, options);
  attempt.status = plan.status();
  if (!plan.ok()) return attempt;
  attempt.forward_row = plan->forward_implementation();
  attempt.backward_row = plan->backward_implementation();

  const auto run_with = [&](std::size_t bytes, const auto& pass) {
    const GuardedWorkspace workspace(bytes, workspace_fill, t.inputs.q.device);
    attempt.status = pass(Run{workspace.data(), bytes,
                              stream == nullptr ? nullptr : stream->handle(), options.executor});
    if (stream != nullptr && attempt.status.ok()) attempt.status = stream->synchronize();
    attempt.workspace_intact = attempt.workspace_intact && workspace.intact();
  };
  run_with(plan->forward_workspace_bytes(),
           [&](const Run& run) { return plan->forward(t.inputs, t.outputs, run); });
  if (!attempt.status.ok() || !c.backward) return attempt;
  run_with(plan->backward_workspace_bytes(), [&](const Run& run) {
    return plan->backward(t.inputs, t.outputs, t.d_outputs, t.gradients, run);
  });
  return attempt;
}

Attempt run_on_gpu(const Case& c, const Workload& w, const Results& results, Device device,
                   const PlanOptions& options, unsigned char workspace_fill) {
  BlockMaskView described;
  const Inputs planned = described_on(device, w.inputs(), described);
  if (const Status status = Plan::create(c.attention, planned, options).status(); !status.ok()) {
    return {status, "", "", true, true};
  }
  DeviceCopies copies(device);
  Tensors t;
  t.inputs = copies.inputs(w);
  t.outputs = copies.outputs(results);
  t.d_outputs = {copies.view(w.d_o), copies.view(w.d_lse)};
  t.gradients = copies.gradients(results);
  Attempt attempt = run_tensors(c, t, options, workspace_fill, &stream_of(device));
  if (!attempt.status.ok()) return attempt;
  for (const Named& r : kResults) copies.bring_back(results.*r.tensor);
  for (const Tensor* tensor :
       {&w.q, &w.k, &w.v, &w.bias, &w.mask, &w.alibi_slopes, &w.sink, &w.q_lens, &w.kv_lens,
        &w.cu_seqlens_q, &w.cu_seqlens_k, &w.d_o, &w.d_lse}) {
    attempt.inputs_intact = attempt.inputs_intact && copies.unchanged(*tensor);
  }
  return attempt;
}

struct Worst {
  double error = 0;
  std::int64_t index = 0;
};

Worst worst_difference(const Tensor& a, const Tensor& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Worst worst;
  for (std::int64_t x = 0; x < a.count(); ++x) {
    const double left = a.get(x);
    const double right = b.get(x);
    double error = left == right ? 0 : std::abs(left - right);
    if (std::isnan(error)) error = kInfinity;
    if (error > worst.error) worst = {error, x};
  }
  return worst;
}

double largest(const Tensor& t) {
  double most = 0;
  for (std::int64_t x = 0; x < t.count(); ++x) {
    if (std::isfinite(t.get(x))) most = std::max(most, std::abs(t.get(x)));
  }
  return most;
}

/// What all rows of a case are compared with.
struct Expectation {
  Results oracle;
  Tolerances tolerances;
};

/// 2 · max|naive − oracle| + ε for each result.
Expectation expect(const Case& c, const Workload& w) {
  Expectation e{oracle_results(c, w), {}};
  const Naive naive = naive_attention(c, w);
  const Results formats = make_results(c);
  for (const Named& r : kResults) {
    const Tensor& exact = e.oracle.*r.tensor;
    if (!exact.present()) continue;
    const Bound& bound = naive.bounds.*r.bound;
    double& tolerance = e.tolerances.*r.tolerance;
    tolerance = rounding_allowance(naive.bounds, bound, c.dtype, (formats.*r.tensor).dtype(),
                                   largest(exact));
    if (r.tensor == &Results::lse) continue;
    const double error = worst_difference(naive.results.*r.tensor, exact).error;
    tolerance += 2 * error;
    // A tolerance of twice an unsound naive error would let anything pass.
    EXPECT_LE(error, naive_allowance(naive.bounds, bound, c.dtype, largest(exact)))
        << "naive and reference disagree on " << r.name << " of " << c.describe();
  }
  return e;
}

bool compare(const Case& c, const std::string& row, const Results& got, const Expectation& e) {
  bool good = true;
  for (const Named& r : kResults) {
    const Tensor& exact = e.oracle.*r.tensor;
    const Tensor& out = got.*r.tensor;
    if (!out.present()) continue;
    const double tolerance = e.tolerances.*r.tolerance;
    const Worst worst = worst_difference(out, exact);
    if (worst.error <= tolerance) continue;
    good = false;
    ADD_FAILURE() << fmt::format(
        "{}: {}\n  {}{}: expected {:.9g}, got {:.9g}, error {:.3g}, tolerance {:.3g}", row,
        c.describe(), r.name, position(out, worst.index), exact.get(worst.index),
        out.get(worst.index), worst.error, tolerance);
  }
  return good;
}

/// Whether a second run gives the same again: bit for bit where that is promised, else within the
/// tolerance.
bool repeats(const Case& c, const Workload& w, const std::string& row, const Results& first,
             const Judge& judge) {
  const std::string where = row + ": " + c.describe() + "\n  ";
  const Results second = make_results(c);
  if (Status status = run_case(c, w, second, row, 0).status; !status.ok()) {
    ADD_FAILURE() << where << "second run: " << status.message();
    return false;
  }
  bool good = true;
  const bool same_gradients = c.attention.deterministic || device_of(row).type == DeviceType::cpu;
  for (const Named& r : kResults) {
    const bool forward = r.tensor == &Results::o || r.tensor == &Results::lse;
    if (!(first.*r.tensor).present() || !(forward || same_gradients)) continue;
    if ((first.*r.tensor).same_bits(second.*r.tensor)) continue;
    good = false;
    ADD_FAILURE() << where << "a second run gave another " << r.name;
  }
  return (same_gradients || judge(row, second)) && good;
}

bool check_row(const Case& c, const Workload& w, const std::string& row, const Judge& judge,
               RowCount& count) {
  const std::string where = row + ": " + c.describe() + "\n  ";
  const Results first = make_results(c);
  const Attempt attempt = run_case(c, w, first, row);
  if (attempt.status.code() == StatusCode::unsupported) {
    EXPECT_NE(attempt.status.message(), "") << where << "refused without a reason";
    EXPECT_TRUE(first.o.all_poison()) << where << "refused, but wrote";
    EXPECT_FALSE(takes_everything(row, c))
        << where << "refused by a row that takes everything: " << attempt.status.message();
    if (c.backward) {  // it may still have the forward pass
      Case forward_only = c;
      forward_only.backward = false;
      return check_row(forward_only, w, row, judge, count);
    }
    ++count.refused;
    return true;
  }
  ++count.cases;
  if (c.backward) ++count.backward;
  if (!attempt.status.ok()) {
    ADD_FAILURE() << where << attempt.status.message();
    return false;
  }
  bool good = judge(row, first);
  for (const Named& r : kResults) {
    if ((first.*r.tensor).present() && !(first.*r.tensor).gaps_untouched()) {
      good = false;
      ADD_FAILURE() << where << "wrote outside " << r.name;
    }
  }
  if (attempt.forward_row != row || (c.backward && attempt.backward_row != row)) {
    good = false;
    ADD_FAILURE() << where << "ran " << attempt.forward_row << ", " << attempt.backward_row;
  }
  if (!attempt.workspace_intact) {
    good = false;
    ADD_FAILURE() << where << "wrote outside the workspace";
  }
  if (!attempt.inputs_intact) {
    good = false;
    ADD_FAILURE() << where << "wrote to an input";
  }
  return repeats(c, w, row, first, judge) && good;
}

}  // namespace

std::vector<std::string> rows_under_test(const Case& c) {
  const Workload w = make_workload(c);
  const Results results = make_results(c);
  std::vector<std::string> rows;
  for (const std::string& row : rows_under_test()) {
    BlockMaskView mask;
    const Inputs inputs = described_on(device_of(row), w.inputs(), mask);
    const Status status =
        Plan::create(c.attention, inputs, plan_options(c, results, row, nullptr)).status();
    if (status.ok() || takes_everything(row, c)) rows.push_back(row);
  }
  return rows;
}

std::vector<std::string> host_rows_under_test(const Case& c) {
  std::vector<std::string> rows;
  for (const std::string& row : rows_under_test(c)) {
    if (device_of(row).type == DeviceType::cpu) rows.push_back(row);
  }
  return rows;
}

Inputs described_on(Device device, const Inputs& inputs, BlockMaskView& mask) {
  Inputs in = inputs;
  for (TensorView* view : {&in.q, &in.k, &in.v, &in.bias, &in.mask, &in.alibi_slopes, &in.sink,
                           &in.q_lens, &in.kv_lens, &in.cu_seqlens_q, &in.cu_seqlens_k}) {
    view->device = device;
  }
  if (in.block_mask != nullptr) {
    mask = *in.block_mask;
    mask.device = device;
    in.block_mask = &mask;
  }
  return in;
}

Attempt run_case(const Case& c, const Workload& w, const Results& results, const std::string& row,
                 unsigned char workspace_fill, Executor* executor) {
  const Device device = device_of(row);
  const PlanOptions options = plan_options(c, results, row, executor);
  if (device.type != DeviceType::cpu) {
    return run_on_gpu(c, w, results, device, options, workspace_fill);
  }
  const Tensors tensors{
      w.inputs(), results.outputs(), {w.d_o.view(), w.d_lse.view()}, results.gradients()};
  return run_tensors(c, tensors, options, workspace_fill, nullptr);
}

Results oracle_results(const Case& c, const Workload& w) {
  const Workload wide = widened(w);
  Results results = make_wide_results(c);
  Case exact = c;
  exact.attention.precision = Precision::exact;
  exact.attention.quantization = {};
  const Attempt attempt = run_case(exact, wide, results, "reference");
  EXPECT_TRUE(attempt.status.ok())
      << "reference in f64: " << c.describe() << "\n  " << attempt.status.message();
  return results;
}

std::string position(const Tensor& t, std::int64_t index) {
  std::string s;
  for (int d = t.view().rank - 1; d >= 0; --d) {
    s = std::to_string(index % t.size(d)) + (s.empty() ? "" : ",") + s;
    index /= t.size(d);
  }
  return "[" + s + "]";
}

bool prepare(Case& c) {
  // By a hash, so that every feature keeps some of its cases and meets every way to cut the work.
  const std::uint64_t hash = hash_of(c.describe());
  if (reduced() && hash % kReduction != 0) return false;
  constexpr int kThreads[] = {0, 1, 3, 5, 16};
  if (c.threads == 0) c.threads = kThreads[mix(hash) % std::size(kThreads)];
  return true;
}

void check_rows(const Case& c, const Workload& w, const Judge& judge) {
  for (const std::string& row : rows_under_test()) {
    RowCount& count = counts()[row];
    if (!check_row(c, w, row, judge, count)) ++count.failed;
  }
}

void check_case(const Case& given) {
  const std::uint64_t hash = hash_of(given.describe());
  Case c = given;
  if (!prepare(c)) return;
  const Workload w = make_workload(c);
  const Expectation e = expect(c, w);
  c.attention.deterministic = c.attention.deterministic || mix(hash + 1) % 2 == 0;
  check_rows(c, w,
             [&](const std::string& row, const Results& got) { return compare(c, row, got, e); });
}

Tolerances tolerances(const Case& c, const Workload& w) { return expect(c, w).tolerances; }

double largest_difference(const Tensor& a, const Tensor& b) { return worst_difference(a, b).error; }

}  // namespace tessera::test
