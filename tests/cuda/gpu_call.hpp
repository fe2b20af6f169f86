// One attention on a GPU with all that its runs need, for tests that go below `run_case`.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "device/device.hpp"
#include "support/conformance.hpp"
#include "support/device_copies.hpp"

namespace tessera::test {

/// The rows of rows_under_test() that run on a GPU.
inline std::vector<std::string> gpu_rows() {
  std::vector<std::string> rows;
  for (const std::string& row : rows_under_test()) {
    if (device_of(row).type == DeviceType::cuda) rows.push_back(row);
  }
  return rows;
}

/// Those of them that take a case.
inline std::vector<std::string> gpu_rows(const Case& c) {
  std::vector<std::string> rows;
  for (const std::string& row : rows_under_test(c)) {
    if (device_of(row).type == DeviceType::cuda) rows.push_back(row);
  }
  return rows;
}

/// Tests that are skipped, by name, where no CUDA row can run.
class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu_rows().empty()) GTEST_SKIP() << "no CUDA row can run on this machine";
  }
};

inline constexpr Tensor Results::*kAllResults[] = {&Results::o,     &Results::lse, &Results::d_q,
                                                   &Results::d_k,   &Results::d_v, &Results::d_bias,
                                                   &Results::d_sink};

inline device::Buffer workspace_of(std::size_t bytes, Device device) {
  return value_of(device::Buffer::allocate(bytes, device));
}

/// A case planned for one row, its tensors on the device. Members may be spoiled between runs.
struct GpuCall {
  Case c;
  Workload w;
  Results results;
  DeviceCopies copies;
  Inputs inputs;
  Outputs outputs;
  OutputGradients d_outputs;
  InputGradients gradients;
  Plan plan;
  device::Stream stream;
  device::Buffer forward_workspace, backward_workspace;

  GpuCall(const Case& given, const std::string& row, Device device = {DeviceType::cuda, 0})
      : GpuCall(given, make_workload(given), row, device) {}

  GpuCall(const Case& given, const Workload& workload, const std::string& row,
          Device device = {DeviceType::cuda, 0})
      : c(given),
        w(workload),
        results(make_results(c)),
        copies(device),
        inputs(copies.inputs(w)),
        outputs(copies.outputs(results)),
        d_outputs{copies.view(w.d_o), copies.view(w.d_lse)},
        gradients(copies.gradients(results)),
        plan(value_of(Plan::create(c.attention, inputs, options(row)))),
        stream(value_of(device::Stream::create(device))),
        forward_workspace(workspace_of(plan.forward_workspace_bytes(), device)),
        backward_workspace(workspace_of(plan.backward_workspace_bytes(), device)) {}
  GpuCall(const GpuCall&) = delete;  // inputs point into copies
  GpuCall& operator=(const GpuCall&) = delete;

  Run forward_run() const {
    return {forward_workspace.data(), forward_workspace.bytes(), stream.handle(), nullptr};
  }
  Run backward_run() const {
    return {backward_workspace.data(), backward_workspace.bytes(), stream.handle(), nullptr};
  }

  /// Enqueues forward, and backward if the case has it.
  Status enqueue() const {
    Status status = plan.forward(inputs, outputs, forward_run());
    if (status.ok() && c.backward) {
      status = plan.backward(inputs, outputs, d_outputs, gradients, backward_run());
    }
    return status;
  }

  /// Enqueues and waits.
  Status run() const {
    const Status status = enqueue();
    return status.ok() ? stream.synchronize() : status;
  }

  void poison() {
    for (Tensor Results::*tensor : kAllResults) copies.poison(results.*tensor);
  }
  void bring_back() {
    for (Tensor Results::*tensor : kAllResults) copies.bring_back(results.*tensor);
  }
  /// Whether the results on the device are bit for bit those brought back last.
  bool same_as_brought_back() const {
    for (Tensor Results::*tensor : kAllResults) {
      if (!copies.unchanged(results.*tensor)) return false;
    }
    return true;
  }

 private:
  PlanOptions options(const std::string& row) const {
    PlanOptions options;
    options.implementation = row;
    options.backward = c.backward;
    options.bias_gradient = results.d_bias.present();
    options.sink_gradient = results.d_sink.present();
    return options;
  }
};

/// A case with many tiles in every direction whose gradients are deterministic.
inline Case busy_case(DType dtype) {
  Case c;
  c.dtype = dtype;
  c.heads_q = 6;
  c.heads_kv = 2;
  c.seq_q = 300;
  c.seq_kv = 421;
  c.head_dim = c.head_dim_v = 64;
  c.attention.causal = true;
  c.attention.deterministic = true;
  return c;
}

}  // namespace tessera::test
