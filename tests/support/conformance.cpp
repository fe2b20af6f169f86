#include "support/conformance.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>

#include "support/naive.hpp"

namespace tessera::test {
namespace {

struct RowCount {
  int cases = 0, backward = 0, refused = 0, failed = 0;
};

/// One case of how many a reduced sweep runs.
constexpr std::uint64_t kReduction = 6;

std::map<std::string, RowCount>& counts() {
  static std::map<std::string, RowCount> all;
  return all;
}

/// Sees that there is something to test, and prints how many cases each row ran.
class CountPrinter : public testing::Environment {
 public:
  void SetUp() override { EXPECT_FALSE(rows_under_test().empty()) << "is TESSERA_FORCE a row?"; }
  void TearDown() override {
    for (const auto& [row, n] : counts()) {
      std::printf("conformance %-14s %5d cases (%d with backward), %d refused, %d failed\n",
                  row.c_str(), n.cases, n.backward, n.refused, n.failed);
    }
  }
};

[[maybe_unused]] const testing::Environment* const kCountPrinter =
    testing::AddGlobalTestEnvironment(new CountPrinter);

/// Memory aligned as a workspace must be, between guards.
class GuardedWorkspace {
 public:
  GuardedWorkspace(std::size_t bytes, unsigned char fill)
      : bytes_(bytes), memory_(bytes + 3 * kGuard, kPattern) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data()) + kGuard;
    begin_ = (address + kGuard - 1) / kGuard * kGuard - address + kGuard;
    std::fill_n(memory_.begin() + static_cast<std::ptrdiff_t>(begin_), bytes, fill);
  }
  void* data() { return memory_.data() + begin_; }
  std::size_t bytes() const { return bytes_; }
  bool intact() const {
    for (std::size_t x = 0; x < memory_.size(); ++x) {
      const bool inside = x >= begin_ && x < begin_ + bytes_;
      if (!inside && memory_[x] != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr unsigned char kPattern = 0xa5;
  std::size_t bytes_;
  std::vector<unsigned char> memory_;
  std::size_t begin_ = 0;
};

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

bool check_row(const Case& c, const Workload& w, const std::string& row, const Expectation& e,
               RowCount& count) {
  const std::string where = row + ": " + c.describe() + "\n  ";
  const Results first = make_results(c);
  const Attempt attempt = run_case(c, w, first, row);
  if (attempt.status.code() == StatusCode::unsupported) {
    ++count.refused;
    EXPECT_NE(attempt.status.message(), "") << where << "refused without a reason";
    EXPECT_TRUE(first.o.all_poison()) << where << "refused, but wrote";
    EXPECT_TRUE(row != "reference" && row != "cpu_portable")
        << where << "refused by a row that takes everything: " << attempt.status.message();
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
  const Results second = make_results(c);
  if (Status status = run_case(c, w, second, row, 0).status; !status.ok()) {
    ADD_FAILURE() << where << "second run: " << status.message();
    return false;
  }
  for (const Named& r : kResults) {
    if (!(first.*r.tensor).present() || (first.*r.tensor).same_bits(second.*r.tensor)) continue;
    good = false;
    ADD_FAILURE() << where << "a second run gave another " << r.name;
  }
  return good;
}

}  // namespace

bool reduced() {
  const char* variable = std::getenv("TESSERA_TEST_REDUCED");
  return variable != nullptr && std::string(variable) == "1";
}

const std::vector<std::string>& rows_under_test() {
  static const std::vector<std::string> kRows = [] {
    const char* forced = std::getenv("TESSERA_FORCE");
    std::vector<std::string> rows;
    for (const Implementation& row : implementations()) {
      if (!row.available || row.device != DeviceType::cpu) continue;
      if (forced == nullptr || row.name == forced) rows.push_back(row.name);
    }
    return rows;
  }();
  return kRows;
}

Attempt run_case(const Case& c, const Workload& w, const Results& results, const std::string& row,
                 unsigned char workspace_fill, Executor* executor) {
  Attempt attempt;
  PlanOptions options;
  options.implementation = row;
  options.backward = c.backward;
  options.bias_gradient = results.d_bias.present();
  options.sink_gradient = results.d_sink.present();
  options.executor = executor;
  options.threads = c.threads;
  const Inputs inputs = w.inputs();
  const Result<Plan> plan = Plan::create(c.attention, inputs, options);
  attempt.status = plan.status();
  if (!plan.ok()) return attempt;
  attempt.forward_row = plan->forward_implementation();
  attempt.backward_row = plan->backward_implementation();

  GuardedWorkspace forward(plan->forward_workspace_bytes(), workspace_fill);
  attempt.status = plan->forward(inputs, results.outputs(),
                                 {forward.data(), forward.bytes(), nullptr, executor});
  attempt.workspace_intact = forward.intact();
  if (!attempt.status.ok() || !c.backward) return attempt;

  GuardedWorkspace backward(plan->backward_workspace_bytes(), workspace_fill);
  attempt.status =
      plan->backward(inputs, results.outputs(), {w.d_o.view(), w.d_lse.view()}, results.gradients(),
                     {backward.data(), backward.bytes(), nullptr, executor});
  attempt.workspace_intact = attempt.workspace_intact && backward.intact();
  return attempt;
}

Results oracle_results(const Case& c, const Workload& w) {
  const Workload wide = widened(w);
  Results results = make_wide_results(c);
  const Attempt attempt = run_case(c, wide, results, "reference");
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
  for (const std::string& row : rows_under_test()) {
    RowCount& count = counts()[row];
    if (!check_row(c, w, row, e, count)) ++count.failed;
  }
}

Tolerances tolerances(const Case& c, const Workload& w) { return expect(c, w).tolerances; }

double largest_difference(const Tensor& a, const Tensor& b) { return worst_difference(a, b).error; }

}  // namespace tessera::test
