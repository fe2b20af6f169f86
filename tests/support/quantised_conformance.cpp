#include "support/quantised_conformance.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/conformance.hpp"
#include "support/quantised_model.hpp"
#include "support/row_counts.hpp"

namespace tessera::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Worst {
  double excess = 0;  ///< Error over tolerance; infinite where one is finite and the other not.
  std::int64_t index = -1;
};

/// The worst element that is off by more than its tolerance.
Worst worst_element(const Tensor& got, const Tensor& expected, const Tensor& tolerance,
                    const Tensor* more) {
  Worst worst;
  for (std::int64_t x = 0; x < got.count(); ++x) {
    const double left = got.get(x);
    const double right = expected.get(x);
    if (left == right) continue;
    double excess = kInfinity;
    if (!std::isfinite(left) && !std::isfinite(right)) {
      // A row without keys has −inf exactly; whatever else is not finite came of a NaN or infinity.
      if (right != -kInfinity) continue;
    } else if (std::isfinite(left) && std::isfinite(right)) {
      const double allowed = tolerance.get(x) + (more == nullptr ? 0 : more->get(x));
      if (std::abs(left - right) <= allowed) continue;
      excess = std::abs(left - right) / allowed;
    }
    if (excess > worst.excess) worst = {excess, x};
  }
  return worst;
}

/// Has every test skipped where no row under test quantises. A row that is forced must do so, and
/// must have taken a case by the end.
class SomeRowQuantises : public testing::Environment {
 public:
  void SetUp() override {
    if (rows_under_test().empty()) return;
    Case c;
    c.dtype = DType::f16;
    c.backward = false;
    c.attention.precision = Precision::sage8;
    const Workload w = make_workload(c);
    std::string refusals;
    for (const std::string& row : rows_under_test()) {
      const Attempt attempt = run_case(c, w, make_results(c), row);
      if (attempt.status.ok()) return;
      refusals += (refusals.empty() ? "" : "; ") + row;
    }
    ASSERT_EQ(forced_row(), "") << "the forced row does not quantise";
    skip_every_test("none of " + refusals + " quantises");
  }
  void TearDown() override {
    if (forced_row().empty() || rows_under_test().empty()) return;
    EXPECT_GT(counts()[forced_row()].cases, 0) << forced_row() << " is forced and has run no case";
  }
};

[[maybe_unused]] const testing::Environment* const kSomeRowQuantises =
    testing::AddGlobalTestEnvironment(new SomeRowQuantises);

}  // namespace

bool compare_quantised(const Case& c, const std::string& row, const Results& got,
                       const QuantisedExpectation& e) {
  bool good = true;
  const auto compare = [&](const char* name, const Tensor& out, const Tensor& expected,
                           const Tensor& tolerance, const Tensor* more) {
    if (!out.present()) return;
    const Worst worst = worst_element(out, expected, tolerance, more);
    if (worst.index < 0) return;
    good = false;
    const double allowed =
        tolerance.get(worst.index) + (more == nullptr ? 0 : more->get(worst.index));
    ADD_FAILURE() << fmt::format(
        "{}: {}\n  {}{}: expected {:.9g}, got {:.9g}, tolerance {:.3g}, {:.3g} times exceeded", row,
        c.describe(), name, position(out, worst.index), expected.get(worst.index),
        out.get(worst.index), allowed, worst.excess);
  };
  const bool gpu = device_of(row).type != DeviceType::cpu;
  compare("o", got.o, e.values.o, e.o_f32, gpu ? &e.o_short : nullptr);
  compare("lse", got.lse, e.values.lse, e.lse_f32, nullptr);
  return good;
}

void check_quantised_case(const Case& given) {
  Case c = given;
  c.backward = false;
  if (!prepare(c)) return;
  check_quantised_workload(c, make_workload(c));
}

void check_quantised_workload(const Case& c, const Workload& w) {
  const QuantisedExpectation e = expect_quantised(c, w);
  const std::vector<std::string>& rows = rows_under_test();
  if (std::find(rows.begin(), rows.end(), "reference") == rows.end()) {
    const Results model = make_results(c);
    const Attempt attempt = run_case(c, w, model, "reference");
    ASSERT_TRUE(attempt.status.ok()) << c.describe() << "\n  " << attempt.status.message();
    EXPECT_TRUE(compare_quantised(c, "reference", model, e)) << "the scalar model itself is off";
  }
  check_rows(c, w, [&](const std::string& row, const Results& got) {
    return compare_quantised(c, row, got, e);
  });
}

}  // namespace tessera::test
