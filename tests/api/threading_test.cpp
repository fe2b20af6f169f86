// One plan on many threads, executors of every kind: the same bits always. Built for
// ThreadSanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

/// Runs tasks one after another, last first.
class BackwardsSerial final : public Executor {
 public:
  int concurrency() const override { return 3; }
  void parallel(int count, void (*task)(void*, int), void* context) override {
    for (int i = count - 1; i >= 0; --i) task(context, i);
  }
};

/// A thread for every task, whatever its count.
class ThreadPerTask final : public Executor {
 public:
  int concurrency() const override { return 3; }
  void parallel(int count, void (*task)(void*, int), void* context) override {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back([=] { task(context, i); });
    for (std::thread& thread : threads) thread.join();
  }
};

Case threaded_case(bool packed, DType dtype = DType::f32) {
  Case c;
  c.dtype = dtype;
  c.heads_q = 4;
  c.heads_kv = 2;
  c.seq_q = 100;
  c.seq_kv = 150;
  c.head_dim = c.head_dim_v = 32;
  c.bias = Extents{false, false, true};  // its gradient sums over sequences and heads
  c.sink = true;
  c.attention.dropout_p = 0.1;
  c.attention.causal = true;
  if (packed) {
    c.cu_seqlens_q = {0, 37, 90};
    c.cu_seqlens_k = {0, 60, 149};
  } else {
    c.blocks = BlockPattern{32, 48, false, true, 0.7, 0.4};
  }
  return c;
}

void expect_same(const Results& a, const Results& b, const std::string& where) {
  EXPECT_TRUE(a.o.same_bits(b.o)) << where;
  EXPECT_TRUE(a.lse.same_bits(b.lse)) << where;
  EXPECT_TRUE(a.d_q.same_bits(b.d_q)) << where;
  EXPECT_TRUE(a.d_k.same_bits(b.d_k)) << where;
  EXPECT_TRUE(a.d_v.same_bits(b.d_v)) << where;
  EXPECT_TRUE(a.d_bias.same_bits(b.d_bias)) << where;
  EXPECT_TRUE(a.d_sink.same_bits(b.d_sink)) << where;
}

TEST(Threading, AnyExecutorGivesTheSameBits) {
  BackwardsSerial serial;
  ThreadPerTask per_task;
  const std::unique_ptr<Executor> pool = make_thread_pool(3);
  ASSERT_EQ(pool->concurrency(), 3);
  for (int kind = 0; kind < 4; ++kind) {
    const Case c = threaded_case(kind % 2 == 1, kind < 2 ? DType::f32 : DType::bf16);
    const Workload w = make_workload(c);
    for (const std::string& row : host_rows_under_test(c)) {
      const Results expected = make_results(c);
      ASSERT_TRUE(run_case(c, w, expected, row, 0xff, &serial).status.ok());
      for (Executor* executor : {static_cast<Executor*>(&per_task), pool.get()}) {
        const Results r = make_results(c);
        ASSERT_TRUE(run_case(c, w, r, row, 0xff, executor).status.ok());
        expect_same(r, expected, row);
      }
    }
  }
}

/// Any worker may get any task, so one that was meant for the tokens behind the last sequence may
/// get a sequence: here the last worker gets everything.
TEST(Threading, TheLastWorkerMayDoAllTheWork) {
  BackwardsSerial serial;
  for (DType dtype : {DType::f32, DType::bf16}) {
    Case c;
    c.dtype = dtype;
    c.heads_q = c.heads_kv = 1;
    c.seq_q = c.seq_kv = 64;
    c.head_dim = c.head_dim_v = 40;
    c.cu_seqlens_q = c.cu_seqlens_k = {0, 30, 60};
    c.threads = 8;
    const Workload w = make_workload(c);
    for (const std::string& row : host_rows_under_test(c)) {
      const Results results = make_results(c);
      const Attempt attempt = run_case(c, w, results, row, 0xff, &serial);
      ASSERT_TRUE(attempt.status.ok()) << row;
      EXPECT_TRUE(attempt.workspace_intact) << row;
    }
  }
}

/// The plan fixes how work is cut; an executor that runs fewer tasks at a time changes no bit.
TEST(Threading, ARunMayUseAnotherExecutorThanThePlan) {
  BackwardsSerial serial;
  ThreadPerTask per_task;
  const Case c = threaded_case(false);
  const Workload w = make_workload(c);
  for (const std::string& row : host_rows_under_test(c)) {
    PlanOptions options;
    options.implementation = row;
    options.threads = 5;
    const Result<Plan> plan = Plan::create(c.attention, w.inputs(), options);
    ASSERT_TRUE(plan.ok());
    std::vector<std::byte> memory(plan->forward_workspace_bytes() + 64);
    auto* aligned =
        memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
    const Results a = make_results(c), b = make_results(c);
    ASSERT_TRUE(
        plan->forward(w.inputs(), a.outputs(), {aligned, memory.size() - 64, nullptr, &serial})
            .ok());
    ASSERT_TRUE(
        plan->forward(w.inputs(), b.outputs(), {aligned, memory.size() - 64, nullptr, &per_task})
            .ok());
    EXPECT_TRUE(a.o.same_bits(b.o)) << row;
    EXPECT_TRUE(a.lse.same_bits(b.lse)) << row;
  }
}

/// Eight threads share a plan (and the default pool); each has its own workspace and results.
TEST(Threading, OnePlanOnManyThreads) {
  const Case c = threaded_case(false);
  const Workload w = make_workload(c);
  const Inputs inputs = w.inputs();
  for (const std::string& row : host_rows_under_test(c)) {
    const Results expected = make_results(c);
    ASSERT_TRUE(run_case(c, w, expected, row).status.ok());
    PlanOptions options;
    options.implementation = row;
    options.backward = options.bias_gradient = options.sink_gradient = true;
    const Result<Plan> plan = Plan::create(c.attention, inputs, options);
    ASSERT_TRUE(plan.ok());
    constexpr int kThreads = 8;
    std::vector<Results> results;
    for (int t = 0; t < kThreads; ++t) results.push_back(make_results(c));
    std::atomic<int> failures = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        const std::size_t bytes =
            std::max(plan->forward_workspace_bytes(), plan->backward_workspace_bytes());
        std::vector<std::byte> memory(bytes + 64);
        auto* aligned =
            memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
        const tessera::Run run{aligned, bytes, nullptr, nullptr};
        const Results& r = results[t];
        for (int repeat = 0; repeat < 3; ++repeat) {
          const Status forward = plan->forward(inputs, r.outputs(), run);
          const Status backward =
              plan->backward(inputs, r.outputs(), {w.d_o.view(), {}}, r.gradients(), run);
          if (!forward.ok() || !backward.ok()) ++failures;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(failures, 0) << row;
    for (const Results& r : results) expect_same(r, expected, row);
  }
}

/// Planning, and the one-call functions, from many threads at once: first use of the default pool
/// and of everything that is found out about the machine once.
TEST(Threading, OneCallsFromManyThreads) {
  Case c = threaded_case(true);
  c.backward = false;
  const Workload w = make_workload(c);
  std::vector<Results> results;
  for (int t = 0; t < 6; ++t) results.push_back(make_results(c));
  std::vector<std::thread> threads;
  std::atomic<int> failures = 0;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      if (!attention_forward(c.attention, w.inputs(), results[t].outputs()).ok()) ++failures;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  for (const Results& r : results) EXPECT_TRUE(r.o.same_bits(results.front().o));
}

TEST(Threading, APoolRunsEveryTaskOnce) {
  for (int size : {1, 2, 5}) {
    const std::unique_ptr<Executor> pool = make_thread_pool(size);
    EXPECT_EQ(pool->concurrency(), size);
    for (int count : {0, 1, 2, 3, 64, 1000}) {
      std::vector<std::atomic<int>> calls(count);
      pool->parallel(
          count,
          [](void* context, int index) {
            ++(*static_cast<std::vector<std::atomic<int>>*>(context))[index];
          },
          &calls);
      for (const std::atomic<int>& n : calls) ASSERT_EQ(n, 1);
    }
  }
  EXPECT_GE(make_thread_pool()->concurrency(), 1);
  EXPECT_GE(default_executor().concurrency(), 1);
}

TEST(Threading, APoolServesConcurrentCallers) {
  const std::unique_ptr<Executor> pool = make_thread_pool(3);
  std::atomic<int> calls = 0;
  std::vector<std::thread> callers;
  for (int t = 0; t < 6; ++t) {
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        pool->parallel(
            7, [](void* context, int) { ++*static_cast<std::atomic<int>*>(context); }, &calls);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(calls, 6 * 50 * 7);
}

}  // namespace
}  // namespace tessera::test
