// Runs are only launches: on the caller's stream and device, from any thread, and into a graph.
#include <atomic>
#include <thread>

#include "cuda/gpu_call.hpp"

namespace tessera::test {
namespace {

using Streams = Gpu;

/// Few queries, for rows that share out the keys and merge; some have no backward pass.
Case split_case(DType dtype) {
  Case c = busy_case(dtype);
  c.seq_q = 2;
  c.seq_kv = 7001;
  c.backward = false;
  return c;
}

Case sparse_case(DType dtype) {
  Case c = busy_case(dtype);
  c.blocks = BlockPattern{32, 64, false, true, 0.5, 0.5};
  c.bias = Extents{false, true, true};
  c.sink = true;
  return c;
}

Case quantised_case(DType dtype) {
  Case c = busy_case(dtype);
  c.attention.precision = dtype == DType::f32 ? Precision::sage4 : Precision::sage8;
  c.backward = false;
  return c;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (DType dtype : {DType::bf16, DType::f32}) {
    for (const auto& make : {busy_case, split_case, sparse_case, quantised_case})
      all.push_back(make(dtype));
  }
  return all;
}

/// Recording fails where a run waits, allocates or uses another stream; and a graph that replays
/// gives the bits of a direct run.
TEST_F(Streams, BothPassesRecordIntoAGraph) {
  for (const Case& c : cases()) {
    for (const std::string& row : gpu_rows(c)) {
      const std::string where = row + ": " + c.describe();
      GpuCall call(c, row);
      ASSERT_TRUE(call.run().ok()) << where;
      call.bring_back();
      const Result<device::Graph> graph =
          device::Graph::record(call.stream, [&] { return call.enqueue(); });
      ASSERT_TRUE(graph.ok()) << where << ": " << graph.status().message();
      for (int launch = 0; launch < 3; ++launch) {
        call.poison();
        ASSERT_TRUE(graph.value().launch(call.stream).ok()) << where;
        ASSERT_TRUE(call.stream.synchronize().ok()) << where;
        EXPECT_TRUE(call.same_as_brought_back()) << where;
      }
    }
  }
}

/// Two threads, each with a stream, a workspace and results of its own, share one plan.
TEST_F(Streams, OnePlanOnTwoThreads) {
  for (const Case& c : cases()) {
    for (const std::string& row : gpu_rows(c)) {
      const std::string where = row + ": " + c.describe();
      GpuCall first(c, row);
      GpuCall second(c, row);
      second.plan = first.plan;
      ASSERT_TRUE(first.run().ok()) << where;
      first.bring_back();
      ASSERT_TRUE(second.run().ok()) << where;
      second.bring_back();
      std::atomic<int> failures = 0;
      const auto repeat = [&failures](GpuCall& call) {
        for (int run = 0; run < 20; ++run) {
          if (!call.run().ok()) ++failures;
        }
      };
      std::thread other([&] { repeat(second); });
      repeat(first);
      other.join();
      EXPECT_EQ(failures, 0) << where;
      EXPECT_TRUE(first.same_as_brought_back()) << where;
      EXPECT_TRUE(second.same_as_brought_back()) << where;
      EXPECT_TRUE(first.results.o.same_bits(second.results.o)) << where;
    }
  }
}

/// Every GPU of the machine, whichever is current.
TEST_F(Streams, EveryDeviceGivesTheSameBits) {
  const int devices = device::count(DeviceType::cuda);
  if (devices < 2) GTEST_SKIP() << "one GPU";
  const Case c = busy_case(DType::bf16);
  for (const std::string& row : gpu_rows(c)) {
    GpuCall first(c, row);
    ASSERT_TRUE(first.run().ok()) << row;
    first.bring_back();
    for (int index = 1; index < devices; ++index) {
      GpuCall other(c, row, {DeviceType::cuda, index});
      const Status status = other.run();
      ASSERT_TRUE(status.ok()) << row << " on device " << index << ": " << status.message();
      other.bring_back();
      EXPECT_TRUE(first.results.o.same_bits(other.results.o)) << row << " on device " << index;
      EXPECT_TRUE(first.results.d_k.same_bits(other.results.d_k)) << row << " on device " << index;
    }
  }
}

/// A race shows as bits that change now and then.
TEST_F(Streams, AThousandRunsGiveTheSameBits) {
  const int runs = reduced() ? 20 : 1000;
  for (const Case& c : cases()) {
    for (const std::string& row : gpu_rows(c)) {
      GpuCall call(c, row);
      ASSERT_TRUE(call.run().ok()) << row;
      call.bring_back();
      for (int run = 1; run < runs; ++run) {
        call.poison();
        ASSERT_TRUE(call.run().ok()) << row;
        ASSERT_TRUE(call.same_as_brought_back()) << row << ": " << c.describe() << ", run " << run;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::test
