// A plan of Tessera's on a GPU, and the tensors it runs on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bench/normal_pool.hpp"
#include "bench/problem.hpp"
#include "device/block_mask.hpp"
#include "device/device.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli::bench {

/// The tensors of a case in device memory: inputs random, outputs uninitialised.
struct GpuTensors {
  /// Throws Error if memory is short. Each `set` has other data.
  GpuTensors(const Case& problem, const NormalPool& pool, Device device, std::size_t set);

  device::Buffer q, k, v, o, lse, d_o, d_q, d_k, d_v;
  Inputs inputs;
  Outputs outputs;
  OutputGradients d_outputs;
  InputGradients d_inputs;
};

/// One variant of a case, ready to run again and again on any set of its tensors.
class GpuContender {
 public:
  /// `mask` may be null. Throws Error if no row of the table accepts the case.
  GpuContender(const Case& problem, const Variant& variant, const BlockMask* mask,
               const GpuTensors& like, const device::Stream& stream);

  /// Enqueues the case's pass. Throws Error.
  void enqueue(const GpuTensors& tensors) const;

  /// The row that runs.
  std::string name() const;
  std::int64_t workspace_bytes() const { return static_cast<std::int64_t>(workspace_.bytes()); }

 private:
  Inputs with_mask(const Inputs& inputs) const;

  Pass pass_;
  device::Stream stream_;
  std::optional<device::BlockMaskCopy> mask_;
  Plan plan_;
  device::Buffer workspace_;
};

}  // namespace tessera::cli::bench
