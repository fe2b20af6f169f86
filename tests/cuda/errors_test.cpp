// Bad input on a GPU: a status that names it, outputs untouched, and a device that works as before.
#include <limits>
#include <vector>

#include "cuda/gpu_call.hpp"

namespace tessera::test {
namespace {

using Errors = Gpu;

void expect_refused(const Status& status, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), StatusCode::invalid_argument) << status.message();
  for (const std::string& part : parts) {
    EXPECT_NE(status.message().find(part), std::string::npos)
        << "'" << part << "' in: " << status.message();
  }
}

/// That nothing has run since the results were poisoned, and that the device still works.
void expect_untouched_and_usable(GpuCall& call, const std::string& row) {
  ASSERT_TRUE(device::synchronize({DeviceType::cuda, 0}).ok()) << row;
  call.bring_back();
  for (Tensor Results::*tensor : kAllResults) {
    EXPECT_TRUE((call.results.*tensor).all_poison()) << row;
  }
  const GpuCall good(call.c, row);
  const Status status = good.run();
  EXPECT_TRUE(status.ok()) << row << ": " << status.message();
}

/// That every row runs on a workload with a lie in it, and the device lives.
void run_all(const Case& c, const Workload& spoilt, std::int64_t lie) {
  for (const std::string& row : gpu_rows(c)) {
    const GpuCall call(c, spoilt, row);
    const Status status = call.run();
    ASSERT_TRUE(status.ok()) << row << ": " << c.describe() << ", a lie of " << lie << ": "
                             << status.message();
  }
}

TEST_F(Errors, TensorsOnDifferentDevices) {
  const Case c = busy_case(DType::bf16);
  for (const std::string& row : gpu_rows(c)) {
    GpuCall call(c, row);
    const Inputs good = call.inputs;
    call.inputs.k.device = {};
    expect_refused(call.enqueue(), {"k", "cpu", "cuda:0"});
    call.inputs = good;
    call.inputs.v.device.index = 1;
    expect_refused(call.enqueue(), {"v", "cuda:1", "cuda:0"});
    call.inputs = good;
    call.outputs.o.device = {};
    expect_refused(call.enqueue(), {"o", "cpu", "cuda:0"});
    call.outputs.o.device = {DeviceType::cuda, 0};
    call.gradients.d_q.device = {};
    expect_refused(call.plan.backward(call.inputs, call.outputs, call.d_outputs, call.gradients,
                                      call.backward_run()),
                   {"d_q", "cpu", "cuda:0"});
    expect_untouched_and_usable(call, row);
  }
}

TEST_F(Errors, ADeviceThatDoesNotExist) {
  const Case c = busy_case(DType::bf16);
  for (const std::string& row : gpu_rows(c)) {
    GpuCall call(c, row);
    for (int index : {-1, device::count(DeviceType::cuda), 1000}) {
      BlockMaskView mask;
      const Inputs inputs = described_on({DeviceType::cuda, index}, call.inputs, mask);
      expect_refused(Plan::create(c.attention, inputs).status(), {"q", std::to_string(index)});
    }
    expect_untouched_and_usable(call, row);
  }
}

TEST_F(Errors, WorkspacesThatDoNotFit) {
  const Case busy = busy_case(DType::bf16);
  Case few_queries = busy;  // a split over keys needs workspace in the forward pass
  few_queries.seq_q = 1;
  few_queries.seq_kv = 5000;
  few_queries.backward = false;
  for (const Case& c : {busy, few_queries}) {
    for (const std::string& row : gpu_rows(c)) {
      GpuCall call(c, row);
      const auto refused = [&](bool forward, void* workspace, std::size_t bytes) {
        const tessera::Run run{workspace, bytes, call.stream.handle(), nullptr};
        expect_refused(forward ? call.plan.forward(call.inputs, call.outputs, run)
                               : call.plan.backward(call.inputs, call.outputs, call.d_outputs,
                                                    call.gradients, run),
                       {"workspace"});
      };
      for (bool forward : {true, false}) {
        const device::Buffer& workspace =
            forward ? call.forward_workspace : call.backward_workspace;
        if (workspace.bytes() == 0) continue;
        refused(forward, nullptr, workspace.bytes());
        refused(forward, workspace.data(), workspace.bytes() - 1);
        refused(forward, static_cast<std::byte*>(workspace.data()) + 4, workspace.bytes());
      }
      expect_untouched_and_usable(call, row);
    }
  }
}

TEST_F(Errors, AStreamOfAnotherDevice) {
  if (device::count(DeviceType::cuda) < 2) GTEST_SKIP() << "one GPU";
  const Case c = busy_case(DType::bf16);
  const device::Stream other = value_of(device::Stream::create({DeviceType::cuda, 1}));
  for (const std::string& row : gpu_rows(c)) {
    GpuCall call(c, row);
    tessera::Run run = call.forward_run();
    run.stream = other.handle();
    EXPECT_FALSE(call.plan.forward(call.inputs, call.outputs, run).ok()) << row;
    expect_untouched_and_usable(call, row);
  }
}

/// Contents of device memory are the caller's promise. Breaking it may give any result, but must
/// not read or write outside the tensors: the device would report it and be lost.
TEST_F(Errors, ContentsThatLieStayWithinBounds) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  Case lengths = busy_case(DType::bf16);
  lengths.q_lens = {300, 299};
  lengths.kv_lens = {421, 420};
  Case packed = busy_case(DType::bf16);
  packed.cu_seqlens_q = {0, 100, 300};
  packed.cu_seqlens_k = {0, 200, 421};
  Case few_lengths = lengths, few_packed = packed;  // for rows of few queries
  few_lengths.seq_q = 4;
  few_lengths.q_lens = {4, 3};
  few_packed.cu_seqlens_q = {0, 2, 8};
  few_packed.seq_q = 8;
  few_lengths.backward = few_packed.backward = false;
  for (std::int32_t lie : {-1, 422, 100000, kMost, -kMost - 1}) {
    for (const Case& c : {lengths, few_lengths}) {
      Workload w = make_workload(c);
      w.q_lens.set(0, lie);
      w.kv_lens.set(1, lie);
      run_all(c, w, lie);
    }
    for (const Case& c : {packed, few_packed}) {
      Workload w = make_workload(c);
      w.cu_seqlens_q.set(1, lie);
      w.cu_seqlens_k.set(2, lie);
      run_all(c, w, lie);
    }
  }
}

/// An array of a block mask, by name; one of the two is null.
struct MaskArray {
  const char* name;
  const std::int32_t* BlockMaskView::*narrow;
  const std::int64_t* BlockMaskView::*wide;
};
constexpr MaskArray kMaskArrays[] = {
    {"columns", &BlockMaskView::columns, nullptr},
    {"bits_index", &BlockMaskView::bits_index, nullptr},
    {"transposed_rows", &BlockMaskView::transposed_rows, nullptr},
    {"row_offsets", nullptr, &BlockMaskView::row_offsets},
    {"transposed_offsets", nullptr, &BlockMaskView::transposed_offsets},
    {"transposed_entries", nullptr, &BlockMaskView::transposed_entries},
};

class BlockMaskErrors : public Gpu, public testing::WithParamInterface<MaskArray> {};

TEST_P(BlockMaskErrors, LiesStayWithinBounds) {
  Case c = busy_case(DType::bf16);
  c.blocks = BlockPattern{32, 64, false, true, 0.5, 0.5};
  Case few_queries = c;
  few_queries.seq_q = 4;
  few_queries.backward = false;
  for (const Case& lied_to : {c, few_queries}) {
    const Workload w = make_workload(lied_to);
    constexpr std::size_t kLongest = 4096;
    ASSERT_LT(w.block_view.entries, static_cast<std::int64_t>(kLongest));
    for (std::int32_t lie : {-7, 1000, std::numeric_limits<std::int32_t>::max()}) {
      const std::vector<std::int32_t> narrow(kLongest, lie);
      // Offsets from 0 to the lie: rows that are far too long, or of negative length.
      std::vector<std::int64_t> wide(kLongest);
      for (std::size_t x = 0; x < kLongest; ++x) wide[x] = x % 2 == 0 ? 0 : lie;
      Workload spoilt = w;
      if (GetParam().narrow != nullptr) spoilt.block_view.*GetParam().narrow = narrow.data();
      if (GetParam().wide != nullptr) spoilt.block_view.*GetParam().wide = wide.data();
      run_all(lied_to, spoilt, lie);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Arrays, BlockMaskErrors, testing::ValuesIn(kMaskArrays),
                         [](const auto& parameter) { return parameter.param.name; });

}  // namespace
}  // namespace tessera::test
