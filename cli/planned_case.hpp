// A case ready to run on a device.
#pragma once

#include "attention_case.hpp"
#include "device/device.hpp"
#include "device_tensors.hpp"

namespace tessera::cli {

/// A plan with its workspace and its inputs, on a device.
class PlannedCase {
 public:
  /// Throws Error with the library's message if there is no plan, or with the device's.
  PlannedCase(const AttentionCase& attention_case, const PlanOptions& options, Device device);

  const Plan& plan() const { return plan_; }

  /// Each writes to `results` and returns the run's milliseconds, copies left out. Backward reads
  /// results.o and results.lse.
  double forward(Results& results);
  double backward(Results& results);

 private:
  Run run_with(std::size_t workspace_bytes) const;
  template <typename Action>
  double milliseconds(const Action& action) const;

  const AttentionCase& case_;
  DeviceTensors tensors_;
  Inputs inputs_;
  Plan plan_;
  Executor* executor_;
  device::Buffer workspace_;
  device::Stream stream_;  ///< Empty on the CPU.
};

}  // namespace tessera::cli
