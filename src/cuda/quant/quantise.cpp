#include "cuda/quant/quantise.hpp"

#include <algorithm>
#include <vector>

#include "cuda/quant/passes.hpp"
#include "quant/scheme.hpp"

namespace tessera::cuda {
namespace {

/// Hands out arrays, each at a multiple of 64 bytes.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}

  template <typename T>
  void take(T*& array, std::int64_t count) {
    array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

std::int64_t padded_rows(const Problem& problem, std::int64_t rows) {
  const std::int64_t tiles = problem.varlen ? rows / kTileTokens + problem.batch + 1
                                            : (rows + kTileTokens - 1) / kTileTokens;
  return tiles * kTileTokens;
}

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
        levels_(quant::levels_of(problem.precision)) {}

  Status run(bool row_offsets, cudaStream_t stream) const {
    const bool smooth_k = scratch_.k_means != nullptr;
    const bool smooth_q = scratch_.q_means != nullptr;
    for (const bool smoothed : {false, true}) {
      if (Status status = compute_statistics(p_, statistics(smoothed), stream); !status.ok()) {
        return status;
      }
    }
    const RowsTarget targets[] = {{q_, q_means(), scheme_.granularity, levels_, scratch_.q_largest,
                                   x_.q, x_.pitch, x_.q_scales},
                                  {k_,
                                   {scratch_.k_means},
                                   scheme_.granularity,
                                   levels_,
                                   scratch_.k_largest,
                                   x_.k,
                                   x_.pitch,
                                   x_.k_scales}};
    for (const RowsTarget& target : targets) {
      if (Status status = quantise_rows(p_, target, stream); !status.ok()) return status;
    }
    if (Status status =
            quantise_values(p_, {v_, x_.v_means, scratch_.v_largest, x_.v, x_.v_scales}, stream);
        !status.ok()) {
      return status;
    }
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
  Means q_means() const { return {scratch_.q_means, scheme_.smooth_q == SmoothQ::block}; }

  /// First what does not depend on means: these, and largest magnitudes where nothing is
  /// subtracted; then the other magnitudes.
  std::vector<Statistics> statistics(bool smoothed) const {
    using Kind = Statistics::Kind;
    std::vector<Statistics> all;
    const auto add = [&](const Source& source, Kind mean_kind, float* sums, float* means,
                         float* largest) {
      const bool has_means = means != nullptr;
      if (has_means && !smoothed) all.push_back({source, mean_kind, {}, sums, means});
      if (largest != nullptr && has_means == smoothed) {
        all.push_back(
            {source, Kind::largest, {means, mean_kind == Kind::block_means}, sums, largest});
      }
    };
    add(q_, scheme_.smooth_q == SmoothQ::block ? Kind::block_means : Kind::mean, scratch_.q_sums,
        scratch_.q_means, scratch_.q_largest);
    add(k_, Kind::mean, scratch_.k_sums, scratch_.k_means, scratch_.k_largest);
    add(v_, Kind::mean, scratch_.v_sums, x_.v_means, scratch_.v_largest);
    return all;
  }

  const Quantization& scheme_;
  const Parameters& p_;
  const QuantisedOperands& x_;
  const QuantiseScratch& scratch_;
  const Source q_, k_, v_;
  const float levels_;
};

}  // namespace

QuantisedWorkspace quantised_workspace(const Problem& problem, std::byte* base) {
  const Quantization& scheme = problem.quantization;
  const bool tensor = scheme.granularity == ScaleGranularity::tensor;
  const bool blocks = scheme.smooth_q == SmoothQ::block;
  const std::int64_t batch = problem.varlen ? 1 : problem.batch;
  const std::int64_t rows_q = padded_rows(problem, problem.seq_q);
  const std::int64_t rows_kv = padded_rows(problem, problem.seq_kv);
  const std::int64_t pitch = (problem.head_dim + 15) / 16 * 16;
  const std::int64_t planes_q = batch * problem.heads_q, planes_kv = batch * problem.heads_kv;
  const std::int64_t sequences_q = problem.batch * problem.heads_q;
  const std::int64_t sequences_kv = problem.batch * problem.heads_kv;
  QuantisedWorkspace to;
  QuantisedOperands& x = to.operands;
  x.rows_q = static_cast<int>(rows_q);
  x.rows_kv = static_cast<int>(rows_kv);
  x.pitch = static_cast<int>(pitch);
  x.v_stride = static_cast<int>(problem.head_dim_v);
  x.token_scales = scheme.granularity == ScaleGranularity::token;
  x.offset_blocks = blocks ? static_cast<int>(rows_q / kTileTokens) : 1;
  Carver carver(base);
  carver.take(x.q, planes_q * rows_q * pitch);
  carver.take(x.k, planes_kv * rows_kv * pitch);
  carver.take(x.v, planes_kv * rows_kv * problem.head_dim_v);
  carver.take(x.q_scales, planes_q * rows_q / (x.token_scales ? 1 : 4));
  carver.take(x.k_scales, planes_kv * rows_kv / (x.token_scales ? 1 : 16));
  carver.take(x.v_scales, sequences_kv * problem.head_dim_v);

  QuantiseScratch& s = to.scratch;
  const bool smooth_k = scheme.smooth_k == Smoothing::on;
  const bool smooth_q = scheme.smooth_q != SmoothQ::none;
  const bool smooth_v = scheme.smooth_v == Smoothing::on;
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  if (smooth_v) carver.take(x.v_means, sequences_kv * dv);
  if (smooth_k) carver.take(x.row_offsets, planes_q * rows_q);
  if (smooth_q) carver.take(x.key_offsets, planes_q * x.offset_blocks * rows_kv);
  if (smooth_q || tensor) carver.take(s.q_sums, planes_q * rows_q / quant::kQueryBlock * d);
  if (smooth_k || tensor) carver.take(s.k_sums, planes_kv * rows_kv / quant::kKeyBlock * d);
  carver.take(s.v_sums, planes_kv * rows_kv / quant::kKeyBlock * dv);
  if (smooth_q) {
    carver.take(s.q_means, (blocks ? planes_q * rows_q / quant::kQueryBlock : sequences_q) * d);
  }
  if (smooth_k) carver.take(s.k_means, sequences_kv * d);
  if (tensor) {
    carver.take(s.q_largest, sequences_q * d);
    carver.take(s.k_largest, sequences_kv * d);
  }
  carver.take(s.v_largest, sequences_kv * dv);
  to.bytes = carver.bytes();
  return to;
}

Status quantise(const Problem& problem, const Parameters& p, const QuantisedWorkspace& to,
                bool row_offsets, cudaStream_t stream) {
  return Quantiser(problem, p, to).run(row_offsets, stream);
}

}  // namespace tessera::cuda
