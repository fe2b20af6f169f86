#include "support/conformance.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>

#include "core/registry.hpp"
#include "support/device_copies.hpp"
#include "support/naive.hpp"

namespace tessera::test {
namespace {

struct RowCount {
  int cases = 0, backward = 0, refused = 0, failed = 0;
};

/// The environment's value, or an empty string.
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Rows that the environment asks for, whether or not this machine can run them.
std::vector<Implementation> rows_asked_for() {
  const std::string forced = variable("TESSERA_FORCE");
  const std::string device = variable("TESSERA_TEST_DEVICE");
  std::vector<Implementation> rows;
  for (const Implementation& row : implementations()) {
    if (!forced.empty() && row.name != forced) continue;
    if (device.empty() || device == name_of(row.device)) rows.push_back(row);
  }
  return rows;
}

/// Why this machine can run none of them, or nothing if that is a mistake in the environment.
std::string why_none_can_run() {
  std::string reasons;
  for (const Implementation& row : rows_asked_for()) {
    reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", row.name, row.unavailable);
  }
  const std::string forced = variable("TESSERA_FORCE");
  const std::string device = variable("TESSERA_TEST_DEVICE");
  if (!reasons.empty() || (device != "cpu" && device != "cuda")) return reasons;
  const Backend& backend = backend_of(device == "cpu" ? DeviceType::cpu : DeviceType::cuda);
  if (backend.rows.empty()) return backend.absent();
  for (const Implementation& row : implementations()) {
    if (row.name == forced)
      return fmt::format("{} is forced, a {} row", forced, name_of(row.device));
  }
  return "";
}

/// The last of the rows that take every exact problem in f32, f16 and bf16.
bool takes_everything(const std::string& row) {
  return row == "reference" || row == "cpu_portable" || row == "cuda_generic";
}

/// One case of how many a reduced sweep runs.
constexpr std::uint64_t kReduction = 6;

std::map<std::string, RowCount>& counts() {
  static std::map<std::string, RowCount> all;
  return all;
}

/// Skips every test, by name, with a reason.
class SkipAll : public testing::EmptyTestEventListener {
 public:
  explicit SkipAll(std::string reason) : reason_(std::move(reason)) {}
  void OnTestStart(const testing::TestInfo&) override { GTEST_SKIP() << reason_; }

 private:
  std::string reason_;
};

/// Sees that there is something to test, or has every test skipped; prints how many cases each row
/// ran, and which rows this machine could not run.
class CountPrinter : public testing::Environment {
 public:
  void SetUp() override {
    if (!rows_under_test().empty()) return;
    const std::string reason = why_none_can_run();
    ASSERT_NE(reason, "") << "no rows to test: is TESSERA_FORCE a row, and TESSERA_TEST_DEVICE cpu "
                             "or cuda?";
    std::printf("every test skipped: %s\n", reason.c_str());
    testing::UnitTest::GetInstance()->listeners().Append(new SkipAll(reason));
  }
  void TearDown() override {
    for (const auto& [row, n] : counts()) {
      std::printf("conformance %-14s %5d cases (%d with backward), %d refused, %d failed\n",
                  row.c_str(), n.cases, n.backward, n.refused, n.failed);
    }
    for (const Implementation& row : rows_asked_for()) {
      if (row.available) continue;
      std::printf("conformance %-14s skipped: %s\n", row.name.c_str(), row.unavailable.c_str());
    }
  }
};

[[maybe_unused]] const testing::Environment* const kCountPrinter =
    testing::AddGlobalTestEnvironment(new CountPrinter);

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

std::string position(const Tensor& t, std::int64_t index) {
  std::string s;
  for (int d = t.view().rank - 1; d >= 0; --d) {
    s = std::to_string(index % t.size(d)) + (s.empty() ? "" : ",") + s;
    index /= t.size(d);
  }
  return "[" + s + "]";
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
    if (worst.error > tolerance) {
      good = false;
      ADD_FAILURE() << fmt::format(
          "{}: {}\n  {}{}: expected {:.9g}, got {:.9g}, error {:.3g}, tolerance {:.3g}", row,
          c.describe(), r.name, position(out, worst.index), exact.get(worst.index),
          out.get(worst.index), worst.error, tolerance);
    }
    if (!out.gaps_untouched()) {
      good = false;
      ADD_FAILURE() << row << ": " << c.describe() << "\n  wrote outside " << r.name;
    }
  }
  return good;
}

/// Whether a second run gives the same again: bit for bit where that is promised, else within the
/// tolerance.
bool repeats(const Case& c, const Workload& w, const std::string& row, const Results& first,
             const Expectation& e) {
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
  return (same_gradients || compare(c, row, second, e)) && good;
}

bool check_row(const Case& c, const Workload& w, const std::string& row, const Expectation& e,
               RowCount& count) {
  const std::string where = row + ": " + c.describe() + "\n  ";
  const Results first = make_results(c);
  const Attempt attempt = run_case(c, w, first, row);
  if (attempt.status.code() == StatusCode::unsupported) {
    EXPECT_NE(attempt.status.message(), "") << where << "refused without a reason";
    EXPECT_TRUE(first.o.all_poison()) << where << "refused, but wrote";
    EXPECT_FALSE(takes_everything(row))
        << where << "refused by a row that takes everything: " << attempt.status.message();
    if (c.backward) {  // it may still have the forward pass
      Case forward_only = c;
      forward_only.backward = false;
      return check_row(forward_only, w, row, e, count);
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
  bool good = compare(c, row, first, e);
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
  return repeats(c, w, row, first, e) && good;
}

}  // namespace

bool reduced() { return variable("TESSERA_TEST_REDUCED") == "1"; }

const std::vector<std::string>& rows_under_test() {
  static const std::vector<std::string> kRows = [] {
    std::vector<std::string> rows;
    for (const Implementation& row : rows_asked_for()) {
      if (row.available) rows.push_back(row.name);
    }
    return rows;
  }();
  return kRows;
}

std::vector<std::string> rows_under_test(const Case& c) {
  const Workload w = make_workload(c);
  const Results results = make_results(c);
  std::vector<std::string> rows;
  for (const std::string& row : rows_under_test()) {
    BlockMaskView mask;
    const Inputs inputs = described_on(device_of(row), w.inputs(), mask);
    const Status status =
        Plan::create(c.attention, inputs, plan_options(c, results, row, nullptr)).status();
    if (status.ok() || takes_everything(row)) rows.push_back(row);
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

Device device_of(const std::string& row) {
  for (const Backend* backend : backends()) {
    for (const Row& candidate : backend->rows) {
      if (candidate.name == row) return {backend->device, 0};
    }
  }
  return {};
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

void check_case(const Case& given) {
  // By a hash, so that every feature keeps some of its cases and meets every way to cut the work.
  const std::uint64_t hash = hash_of(given.describe());
  if (reduced() && hash % kReduction != 0) return;
  Case c = given;
  constexpr int kThreads[] = {0, 1, 3, 5, 16};
  if (c.threads == 0) c.threads = kThreads[mix(hash) % std::size(kThreads)];
  const Workload w = make_workload(c);
  const Expectation e = expect(c, w);
  c.attention.deterministic = c.attention.deterministic || mix(hash + 1) % 2 == 0;
  for (const std::string& row : rows_under_test()) {
    RowCount& count = counts()[row];
    if (!check_row(c, w, row, e, count)) ++count.failed;
  }
}

Tolerances tolerances(const Case& c, const Workload& w) { return expect(c, w).tolerances; }

double largest_difference(const Tensor& a, const Tensor& b) { return worst_difference(a, b).error; }

}  // namespace tessera::test
