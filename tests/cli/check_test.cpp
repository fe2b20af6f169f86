// What `tessera check` measures with: the naive yardstick, differences, and verdicts.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "check/compare.hpp"
#include "check/naive.hpp"
#include "check/suite.hpp"
#include "error.hpp"
#include "generate_case.hpp"
#include "planned_case.hpp"
#include "table.hpp"

namespace tessera::cli {
namespace {

HostTensor tensor_of(std::vector<double> values) {
  HostTensor tensor(DType::f64, {static_cast<std::int64_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i)
    tensor.set(static_cast<std::int64_t>(i), values[i]);
  return tensor;
}

TEST(Difference, OfKnownVectors) {
  const Difference d = difference(tensor_of({3, 0, 0}), tensor_of({3, 4, 0}));
  EXPECT_DOUBLE_EQ(d.max_abs, 4);
  EXPECT_DOUBLE_EQ(d.cosine, 9.0 / (3 * 5));
  EXPECT_DOUBLE_EQ(d.relative_l1, 4.0 / 7);
  EXPECT_DOUBLE_EQ(d.rmse, std::sqrt(16.0 / 3));
}

TEST(Difference, OfZerosInfinitiesAndNaN) {
  EXPECT_EQ(difference(tensor_of({0, 0}), tensor_of({0, 0})).cosine, 1);
  EXPECT_EQ(difference(tensor_of({1, 0}), tensor_of({0, 0})).cosine, 0);
  EXPECT_EQ(difference(tensor_of({-INFINITY}), tensor_of({-INFINITY})).max_abs, 0);
  EXPECT_EQ(difference(tensor_of({-INFINITY}), tensor_of({1})).max_abs, INFINITY);
  EXPECT_EQ(difference(tensor_of({INFINITY}), tensor_of({-INFINITY})).max_abs, INFINITY);
  EXPECT_EQ(difference(tensor_of({NAN}), tensor_of({NAN})).max_abs, INFINITY);
  EXPECT_EQ(difference(HostTensor(DType::f64, {0}), HostTensor(DType::f64, {0})).max_abs, 0);
}

TEST(TensorCheck, FailsOnErrorNaNAndUnrepeatableResults) {
  TensorCheck check;
  check.tolerance = 1e-3;
  check.difference.max_abs = 1e-3;
  EXPECT_TRUE(check.passed());
  check.difference.max_abs = 2e-3;
  EXPECT_FALSE(check.passed());
  check.difference.max_abs = INFINITY;
  EXPECT_FALSE(check.passed());
  check.difference.max_abs = 0;
  check.repeatable = false;
  EXPECT_FALSE(check.passed());
}

// The naive computation is itself close to the reference, in units of its dtype's roundoff: were it
// wrong, twice its error would let anything pass.
class Naive : public testing::TestWithParam<DType> {};

TEST_P(Naive, IsCloseToTheReferenceOnTheDefaultSuite) {
  for (const SuiteCase& s : default_suite(GetParam())) {
    const AttentionCase c = generate_case(s.shape, s.attention, 0, 0, true);
    const AttentionCase wide = c.converted(DType::f64);
    const Wanted wanted = all_gradients(c);
    PlannedCase planned(wide, plan_options(wide, wanted, "reference", nullptr), {});
    Results exact = allocate_results(wide, wanted);
    planned.forward(exact);
    planned.backward(exact);
    const NaiveRun naive = run_naive(c);
    for (std::size_t index = 0; index < kResults.size(); ++index) {
      const HostTensor& reference = exact.*kResults[index].tensor;
      if (!reference.present()) continue;
      const HostTensor& result = naive.results.*kResults[index].tensor;
      const Difference d = difference(result, reference);
      // Two operands rounded to the dtype, and the result.
      EXPECT_LE(d.relative_l1, 4 * unit_roundoff(GetParam()) + 1e-5)
          << s.shape.name << " " << kResults[index].name;
      EXPECT_TRUE(std::isfinite(d.max_abs)) << s.shape.name << " " << kResults[index].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Naive, testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& parameter) { return name_of(parameter.param); });

TEST(Oracle, PassesTheReferenceAndNamesRejections) {
  CaseShape shape;
  shape.seq_q = 33;
  shape.seq_kv = 47;
  shape.bias = true;
  const AttentionCase c = generate_case(shape, {}, 3, 0, true);
  const RowCheck check = Oracle(c, nullptr).check({"reference", {}});
  EXPECT_EQ(check.rejection, "");
  ASSERT_EQ(check.tensors.size(), 6u);
  for (const TensorCheck& tensor : check.tensors) EXPECT_TRUE(tensor.passed()) << tensor.name;
  EXPECT_THROW(Oracle(c, nullptr).check({"no such row", {}}), Error);
}

TEST(GenerateCase, PoisonsWhatNoKernelMayRead) {
  CaseShape shape;
  shape.batch = 2;
  shape.seq_q = 4;
  shape.seq_kv = 6;
  shape.kv_lens = true;
  for (bool packed : {false, true}) {
    shape.packed = packed;
    const AttentionCase c = generate_case(shape, {}, 0, 0, false);
    std::int64_t poisoned = 0;
    for (std::int64_t i = 0; i < c.k.elements(); ++i) poisoned += std::isnan(c.k.at(i));
    // The second sequence has no used keys at all.
    const std::int64_t unused = packed ? 8 : 6;
    EXPECT_EQ(c.kv_lens.at(1), 0);
    EXPECT_EQ(poisoned, unused * shape.heads_kv * shape.head_dim);
  }
}

TEST(Table, AlignsByCharacters) {
  Table table({{"a"}, {"number", Align::right}});
  table.add({"αβ", "1"});
  table.add({"x", "−20"});
  table.add({"only"});
  EXPECT_EQ(table.to_string(),
            "a     number\n"
            "αβ         1\n"
            "x        −20\n"
            "only\n");
}

}  // namespace
}  // namespace tessera::cli
