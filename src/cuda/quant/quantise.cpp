#include "cuda/quant/quantise.hpp"

#include <array>
#include <span>

#include "cuda/host/device.hpp"
#include "cuda/quant/passes.hpp"
#include "quant/scheme.hpp"

namespace tessera::cuda {
namespace {

/// The passes of one call.
class Quantiser {
 public:
  Quantiser(const Problem& problem, const Parameters& p, const QuantisedWorkspace& to)
      : scheme_(problem.quantization),
        p_(p),
        x_(to.operands),
        scratch_(to.scratch),
        q_{p.q, problem.dtype, true, p.heads_q, p.head_dim, x_.rows_q},
        k_{p.k, problem.dtype, false, p.heads_kv, p.head_dim, x_.rows_kv},
        v_{p.v, problem.dtype, false, p.heads_kv, p.head_dim_v, x_.rows_kv},
        levels_(quant::levels_of(problem.precision)),
        device_index_(problem.device.index),
        device_(device_info(device_index_)) {}

  Status run(bool row_offsets, cudaStream_t stream) const {
    const bool smooth_k = scratch_.k_means != nullptr;
    const bool smooth_q = scratch_.q_means != nullptr;
    if (Status status = run_smoothing(stream); !status.ok()) return status;
    if (smooth_k && row_offsets) {
      if (Status status = compute_row_offsets(p_, q_, scratch_.k_means, x_.row_offsets, stream);
          !status.ok()) {
        return status;
      }
    }
    if (!smooth_q) return {};
    return compute_key_offsets(p_, k_, q_means(), scratch_.k_means, x_, stream);
  }

 private:
  Status clear_counters(cudaStream_t stream) const {
    if (scratch_.counters == nullptr) return {};
    const cudaError_t error = cudaMemsetAsync(scratch_.counters, 0, scratch_.cleared_bytes, stream);
    if (error == cudaSuccess) return {};
    return error_status(cudaGetLastError(), "quantise: counters");
  }

  /// Means, integers and codes.
  Status run_smoothing(cudaStream_t stream) const {
    if constexpr (TESSERA_WITH_SM90 != 0) {
      if (device_.compute_capability == 90 && fits_one_launch()) return run_one_launch(stream);
    }
    if (Status status = clear_counters(stream); !status.ok()) return status;
    return run_passes(stream);
  }

  bool fits_one_launch() const {
    return !x_.packed && x_.v_half == nullptr && scheme_.granularity == ScaleGranularity::thread &&
           scheme_.smooth_q != SmoothQ::block && x_.v_means == nullptr && fused_takes(q_) &&
           fused_takes(k_) && fused_takes(v_);
  }

  Status run_one_launch(cudaStream_t stream) const {
    FusedTarget target;
    target.q = q_, target.k = k_, target.v = v_;
    target.levels = levels_;
    target.pitch = x_.pitch;
    target.q_sums = scratch_.q_sums, target.k_sums = scratch_.k_sums;
    target.q_means = scratch_.q_means, target.k_means = scratch_.k_means;
    target.v_largest = scratch_.v_largest;
    target.q_values = x_.q, target.k_values = x_.k, target.v_values = x_.v;
    target.q_scales = x_.q_scales, target.k_scales = x_.k_scales, target.v_scales = x_.v_scales;
    target.counter = scratch_.counters;
    target.state = scratch_.counters + kCounterInts;
    if (const auto shape = clusters_for(p_, target, device_index_)) {
      return quantise_in_clusters(p_, target, *shape, stream);
    }
    if (Status status = clear_counters(stream); !status.ok()) return status;
    return quantise_fused(p_, target, device_.multiprocessors, stream);
  }

  Status run_passes(cudaStream_t stream) const {
    for (const bool smoothed : {false, true}) {
      StatisticsSet all;
      statistics(smoothed, all);
      const std::span<const Statistics> these(all.of.data(), all.count);
      if (Status status = compute_statistics(p_, these, stream); !status.ok()) return status;
    }
    const RowsTarget targets[] = {{q_, q_means(), scheme_.granularity, levels_, scratch_.q_largest,
                                   x_.q, x_.pitch, x_.packed, x_.q_scales},
                                  {k_,
                                   {scratch_.k_means},
                                   scheme_.granularity,
                                   levels_,
                                   scratch_.k_largest,
                                   x_.k,
                                   x_.pitch,
                                   x_.packed,
                                   x_.k_scales}};
    for (const RowsTarget& target : targets) {
      if (target.values == nullptr) continue;
      if (Status status = quantise_rows(p_, target, stream); !status.ok()) return status;
    }
    return convert_values(stream);
  }

  /// One of each tensor at most.
  struct StatisticsSet {
    std::array<Statistics, 3> of;
    std::size_t count = 0;
    void add(const Statistics& s) { of[count++] = s; }
  };

  Status convert_values(cudaStream_t stream) const {
    if (x_.v_half == nullptr) {
      return quantise_values(p_, {v_, x_.v_means, scratch_.v_largest, x_.v, x_.v_scales}, stream);
    }
    return round_values(p_, {v_, x_.v_means, x_.v_half, x_.v_pitch}, stream);
  }

  Means q_means() const { return {scratch_.q_means, scheme_.smooth_q == SmoothQ::block}; }

  /// First what does not depend on means: these, and largest magnitudes where nothing is
  /// subtracted; then the other magnitudes.
  void statistics(bool smoothed, StatisticsSet& all) const {
    using Kind = Statistics::Kind;
    const auto add = [&](const Source& source, Kind mean_kind, float* sums, float* means,
                         float* largest) {
      const bool has_means = means != nullptr;
      if (has_means && !smoothed) all.add({source, mean_kind, {}, sums, means});
      if (largest != nullptr && has_means == smoothed) {
        all.add({source, Kind::largest, {means, mean_kind == Kind::block_means}, sums, largest});
      }
    };
    add(q_, scheme_.smooth_q == SmoothQ::block ? Kind::block_means : Kind::mean, scratch_.q_sums,
        scratch_.q_means, scratch_.q_largest);
    add(k_, Kind::mean, scratch_.k_sums, scratch_.k_means, scratch_.k_largest);
    add(v_, Kind::mean, scratch_.v_sums, x_.v_means, scratch_.v_largest);
  }

  const Quantization& scheme_;
  const Parameters& p_;
  const QuantisedOperands& x_;
  const QuantiseScratch& scratch_;
  const Source q_, k_, v_;
  const float levels_;
  const int device_index_;
  const DeviceInfo& device_;
};

}  // namespace

Status quantise(const Problem& problem, const Parameters& p, const QuantisedWorkspace& to,
                bool row_offsets, cudaStream_t stream) {
  return Quantiser(problem, p, to).run(row_offsets, stream);
}

}  // namespace tessera::cuda
