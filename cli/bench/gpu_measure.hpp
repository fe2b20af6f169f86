// Times groups on a GPU.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/gpu_contender.hpp"
#include "bench/matrix_product.hpp"
#include "bench/measure.hpp"
#include "bench/normal_pool.hpp"

namespace tessera::cli::bench {

/// Variants take turns, a few runs each. A run is timed by events of its stream; before each the L2
/// cache is written over and the next of several sets of tensors is taken. The ceiling, a matrix
/// product in the problem's dtype, is timed between the turns.
class GpuMeter final : public Meter {
 public:
  /// Throws Error if the device cannot be used.
  GpuMeter(Device device, double budget_seconds);

  std::vector<Record> measure(const Group& group, const Progress& progress,
                              std::vector<std::string>& notes) override;

 private:
  struct Running;

  /// Milliseconds of what `enqueue` enqueues, each time after the L2 cache is flushed.
  template <typename Enqueue>
  std::vector<double> time(int runs, const Enqueue& enqueue);
  std::vector<GpuTensors> make_tensors(const Case& problem);
  void run_forward(const Case& problem, const BlockMask* mask,
                   const std::vector<GpuTensors>& tensors);
  /// GFLOP/s of a few products; empty without cuBLASLt.
  std::vector<double> ceiling(DType dtype, std::vector<std::string>& notes);
  double copy_gbytes_per_s();
  Record to_record(const Group& group, const Running& running, const std::vector<double>& ceilings);

  Device device_;
  double budget_seconds_;
  device::Properties properties_;
  device::Stream stream_;
  device::Buffer flush_;
  std::optional<NormalPool> pool_;
  DType pool_dtype_ = DType::f32;
  std::unique_ptr<MatrixProduct> product_;
  std::string no_product_;  ///< Why there is none.
  std::optional<double> copy_gbytes_per_s_;
};

}  // namespace tessera::cli::bench
