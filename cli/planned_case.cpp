#include "planned_case.hpp"

#include <algorithm>
#include <chrono>

#include "error.hpp"

namespace tessera::cli {
namespace {

device::Stream stream_of(Device device) {
  return device.type == DeviceType::cpu ? device::Stream()
                                        : require(device::Stream::create(device));
}

}  // namespace

PlannedCase::PlannedCase(const AttentionCase& attention_case, const PlanOptions& options,
                         Device device)
    : case_(attention_case),
      tensors_(device),
      inputs_(tensors_.put_inputs(attention_case)),
      plan_(require(Plan::create(attention_case.attention, inputs_, options))),
      executor_(options.executor),
      workspace_(require(device::Buffer::allocate(
          std::max(plan_.forward_workspace_bytes(), plan_.backward_workspace_bytes()), device))),
      stream_(stream_of(device)) {}

Run PlannedCase::run_with(std::size_t workspace_bytes) const {
  return {workspace_.data(), workspace_bytes, stream_.handle(), executor_};
}

template <typename Action>
double PlannedCase::milliseconds(const Action& action) const {
  if (tensors_.device().type == DeviceType::cpu) {
    const auto begin = std::chrono::steady_clock::now();
    require(action());
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
        .count();
  }
  device::Timer timer = require(device::Timer::create(stream_));
  require(timer.start());
  require(action());
  require(timer.stop());
  require(stream_.synchronize());
  return require(timer.milliseconds());
}

double PlannedCase::forward(Results& results) {
  const Outputs outputs{tensors_.put(results.o, case_.tokens_view(results.o)),
                        tensors_.put(results.lse)};
  const double elapsed = milliseconds(
      [&] { return plan_.forward(inputs_, outputs, run_with(plan_.forward_workspace_bytes())); });
  tensors_.bring_back(results.o);
  tensors_.bring_back(results.lse);
  return elapsed;
}

double PlannedCase::backward(Results& results) {
  const auto tokens = [this](const HostTensor& tensor) {
    return tensors_.put(tensor, case_.tokens_view(tensor));
  };
  const Outputs outputs{tokens(results.o), tensors_.put(results.lse)};
  const OutputGradients d_outputs{tokens(case_.d_o), tensors_.put(case_.d_lse)};
  const InputGradients d_inputs{tokens(results.d_q), tokens(results.d_k), tokens(results.d_v),
                                tensors_.put(results.d_bias), tensors_.put(results.d_sink)};
  const double elapsed = milliseconds([&] {
    return plan_.backward(inputs_, outputs, d_outputs, d_inputs,
                          run_with(plan_.backward_workspace_bytes()));
  });
  for (HostTensor* tensor :
       {&results.d_q, &results.d_k, &results.d_v, &results.d_bias, &results.d_sink}) {
    tensors_.bring_back(*tensor);
  }
  return elapsed;
}

}  // namespace tessera::cli
