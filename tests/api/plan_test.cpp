// Plans: forcing rows, what they say of themselves, workspaces, running what was planned.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

/// Sets an environment variable for one scope.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    set(value);
  }
  ~ScopedVariable() { set(old_ ? old_->c_str() : nullptr); }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  void set(const char* value) {
    if (value != nullptr) {
      setenv(name_, value, 1);
    } else {
      unsetenv(name_);
    }
  }

  const char* name_;
  std::optional<std::string> old_;
};

struct Planned {
  Case c;
  Workload w = make_workload(c);
  Results results = make_results(c);

  explicit Planned(const Case& valid = {}) : c(valid) {}
  Result<Plan> plan(PlanOptions options = {}) const {
    options.backward = true;
    return Plan::create(c.attention, w.inputs(), options);
  }
};

TEST(Plans, TheEnvironmentForcesARow) {
  const Planned problem;
  for (const std::string& row : host_rows_under_test(problem.c)) {
    const ScopedVariable forced("TESSERA_FORCE", row.c_str());
    const Result<Plan> plan = problem.plan();
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_EQ(plan->forward_implementation(), row);
    EXPECT_EQ(plan->backward_implementation(), row);
  }
}

TEST(Plans, AnOptionForcesARowOverTheEnvironment) {
  const Planned problem;
  const ScopedVariable forced("TESSERA_FORCE", "cpu_portable");
  PlanOptions options;
  options.implementation = "reference";
  const Result<Plan> plan = problem.plan(options);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->forward_implementation(), "reference");
}

TEST(Plans, AnUnknownRowIsNamed) {
  const Planned problem;
  {
    const ScopedVariable forced("TESSERA_FORCE", "cpu_abacus");
    const Status status = problem.plan().status();
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    for (const char* part : {"TESSERA_FORCE", "cpu_abacus", "expected", "reference"}) {
      EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
    }
  }
  PlanOptions options;
  options.implementation = "slide_rule";
  const Status status = problem.plan(options).status();
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_NE(status.message().find("slide_rule"), std::string::npos) << status.message();
}

TEST(Plans, AForcedRowThatCannotSaysWhy) {
  Planned problem;
  problem.w = widened(problem.w);  // f64: the reference's alone
  PlanOptions options;
  options.implementation = "cpu_portable";
  const Status status = problem.plan(options).status();
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_NE(status.message().find("f64"), std::string::npos) << status.message();
  for (const Implementation& row : implementations()) {
    if (row.available || row.device != DeviceType::cpu) continue;
    options.implementation = row.name;
    const Status absent = Planned().plan(options).status();
    EXPECT_EQ(absent.code(), StatusCode::unsupported);
    EXPECT_NE(absent.message().find(row.unavailable), std::string::npos) << absent.message();
  }
}

TEST(Plans, ExplainNamesEveryRow) {
  const ScopedVariable forced("TESSERA_FORCE", nullptr);
  const Planned problem;
  const Result<Plan> plan = problem.plan();
  ASSERT_TRUE(plan.ok());
  const std::string text = plan->explain();
  for (const Implementation& row : implementations()) {
    if (row.device != DeviceType::cpu) continue;
    EXPECT_NE(text.find(row.name), std::string::npos) << text;
    EXPECT_NE(text.find(row.unavailable), std::string::npos) << text;  // "" if it is available
  }
  for (const char* part : {"forward", "backward", "f32", "64x64", "chosen"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
}

TEST(Plans, ThreadsAndPassesAreChecked) {
  const Planned problem;
  PlanOptions options;
  options.threads = -1;
  EXPECT_EQ(problem.plan(options).status().code(), StatusCode::invalid_argument);
  options.threads = 0;
  options.forward = options.backward = false;
  const Status neither = Plan::create(problem.c.attention, problem.w.inputs(), options).status();
  EXPECT_EQ(neither.code(), StatusCode::invalid_argument);
  options.forward = options.bias_gradient = true;
  options.backward = true;
  const Status no_bias = Plan::create(problem.c.attention, problem.w.inputs(), options).status();
  EXPECT_EQ(no_bias.code(), StatusCode::invalid_argument);
  EXPECT_NE(no_bias.message().find("bias_gradient"), std::string::npos) << no_bias.message();
}

TEST(Plans, APassThatWasNotPlannedIsRefused) {
  const Planned problem;
  PlanOptions options;
  const Result<Plan> plan = Plan::create(problem.c.attention, problem.w.inputs(), options);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->backward_implementation(), "");
  EXPECT_EQ(plan->backward_workspace_bytes(), 0u);
  const Status status = plan->backward(problem.w.inputs(), problem.results.outputs(),
                                       {problem.w.d_o.view(), {}}, problem.results.gradients(), {});
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_NE(status.message().find("backward"), std::string::npos) << status.message();
  EXPECT_TRUE(problem.results.d_q.all_poison());
}

TEST(Plans, WorkspacesAreChecked) {
  const Planned problem;
  for (const std::string& row : host_rows_under_test(problem.c)) {
    PlanOptions options;
    options.implementation = row;
    const Result<Plan> plan = problem.plan(options);
    ASSERT_TRUE(plan.ok());
    const std::size_t bytes = plan->forward_workspace_bytes();
    ASSERT_GT(bytes, 0u) << row;
    std::vector<unsigned char> memory(bytes + 128);
    auto* aligned =
        memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
    const auto refused = [&](void* workspace, std::size_t size, const std::string& part) {
      const Status status = plan->forward(problem.w.inputs(), problem.results.outputs(),
                                          {workspace, size, nullptr, nullptr});
      EXPECT_EQ(status.code(), StatusCode::invalid_argument) << row;
      EXPECT_NE(status.message().find("workspace"), std::string::npos) << status.message();
      EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
      EXPECT_TRUE(problem.results.o.all_poison()) << row;
    };
    refused(nullptr, bytes, "null");
    refused(nullptr, 0, "null");
    refused(aligned, bytes - 1, std::to_string(bytes));
    refused(aligned + 4, bytes, "64");
    EXPECT_TRUE(plan->forward(problem.w.inputs(), make_results(problem.c).outputs(),
                              {aligned, bytes, nullptr, nullptr})
                    .ok());
  }
}

TEST(Plans, ARunMustBeOfThePlannedProblem) {
  const Planned problem;
  const Result<Plan> plan = problem.plan();
  ASSERT_TRUE(plan.ok());
  Case other = problem.c;
  other.seq_kv = 65;
  Case biased = problem.c;
  biased.bias = Extents{};
  Case blocked = problem.c;
  blocked.blocks = BlockPattern{};
  std::vector<unsigned char> memory(plan->forward_workspace_bytes() + 64);
  auto* aligned = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  for (const auto& [c, part] :
       {std::pair{other, "k"}, std::pair{biased, "bias"}, std::pair{blocked, "block_mask"}}) {
    const Workload w = make_workload(c);
    const Results results = make_results(c);
    const Status status = plan->forward(w.inputs(), results.outputs(),
                                        {aligned, memory.size() - 64, nullptr, nullptr});
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
    EXPECT_TRUE(results.o.all_poison());
  }
}

TEST(Plans, PlanningReadsNoTensor) {
  Case c;
  c.kv_lens = {64, 3};
  c.bias = Extents{};
  const Planned problem(c);
  Inputs inputs = problem.w.inputs();
  for (TensorView* view : {&inputs.q, &inputs.k, &inputs.v, &inputs.bias, &inputs.kv_lens}) {
    view->data = nullptr;
  }
  EXPECT_TRUE(Plan::create(c.attention, inputs).ok());
}

/// A plan of what a row takes: both passes, or the forward pass alone, exact or quantised.
Result<Plan> plan_on(const std::string& row, const Inputs& inputs, int threads) {
  PlanOptions options;
  options.implementation = row;
  options.backward = true;
  options.threads = threads;
  Result<Plan> plan = Plan::create({}, inputs, options);
  for (const Precision precision : {Precision::exact, Precision::sage8}) {
    if (plan.ok()) break;
    Attention attention;
    attention.precision = precision;
    options.backward = false;
    plan = Plan::create(attention, inputs, options);
  }
  return plan;
}

/// Extra memory must not grow with the square of the sequence.
TEST(Plans, WorkspaceIsLinearInTheSequence) {
  for (const std::string& row : rows_under_test()) {
    if (row == "cuda_split_kv") continue;  // takes few queries
    std::size_t bytes[2] = {};
    for (int x = 0; x < 2; ++x) {
      const std::int64_t seq = x == 0 ? 16384 : 65536;
      Inputs inputs;
      inputs.q = inputs.k = inputs.v =
          TensorView::contiguous(nullptr, DType::bf16, {1, 4, seq, 64}, device_of(row));
      const Result<Plan> plan = plan_on(row, inputs, 2);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      bytes[x] = plan->forward_workspace_bytes() + plan->backward_workspace_bytes();
    }
    EXPECT_LE(bytes[1], 4 * bytes[0] + 4096) << row;
    // A few rows of every operand and accumulator per thread, in at most doubles.
    EXPECT_LE(bytes[1], 2u * 16 * 65536 * 64 * sizeof(double)) << row;
  }
}

/// Whatever the sizes and threads, a workspace's size is a size and not its remainder by 2⁶⁴.
TEST(Plans, WorkspaceNeverWraps) {
  for (const std::string& row : rows_under_test()) {
    std::size_t bytes[2] = {};
    for (int x = 0; x < 2; ++x) {
      Inputs inputs;
      inputs.q = inputs.k = inputs.v =
          TensorView::contiguous(nullptr, DType::bf16, {1, 4, 2147483647, 512}, device_of(row));
      const Result<Plan> plan = plan_on(row, inputs, x == 0 ? 1 : 2147483647);
      if (!plan.ok()) continue;  // refusing such a number of threads is an answer too
      bytes[x] = plan->forward_workspace_bytes() + plan->backward_workspace_bytes();
    }
    EXPECT_TRUE(bytes[1] == 0 || bytes[1] >= bytes[0]) << row << " " << bytes[1];
  }
}

TEST(Plans, DevicesAndVersionAreThere) {
  EXPECT_FALSE(describe_devices().empty());
  EXPECT_NE(std::string(version()), "");
}

}  // namespace
}  // namespace tessera::test
