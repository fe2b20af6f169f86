#include "cuda/quant/workspace.hpp"

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

}  // namespace

QuantisedWorkspace quantised_workspace(const Problem& problem, std::byte* base, bool packed) {
  const Quantization& scheme = problem.quantization;
  const bool tensor = scheme.granularity == ScaleGranularity::tensor;
  const bool blocks = scheme.smooth_q == SmoothQ::block;
  const bool half = scheme.pv == PvFormat::half;
  const std::int64_t batch = problem.varlen ? 1 : problem.batch;
  const std::int64_t rows_q = padded_rows(problem, problem.seq_q);
  const std::int64_t rows_kv = padded_rows(problem, problem.seq_kv);
  packed = packed && problem.precision == Precision::sage4;
  const std::int64_t in_vector = packed ? 32 : 16;  // integers
  const std::int64_t pitch = (problem.head_dim + in_vector - 1) / in_vector * 16;
  const std::int64_t v_pitch = (problem.head_dim_v + 7) / 8 * 8;
  const std::int64_t planes_q = batch * problem.heads_q, planes_kv = batch * problem.heads_kv;
  const std::int64_t sequences_q = problem.batch * problem.heads_q;
  const std::int64_t sequences_kv = problem.batch * problem.heads_kv;
  QuantisedWorkspace to;
  QuantisedOperands& x = to.operands;
  x.rows_q = static_cast<int>(rows_q);
  x.rows_kv = static_cast<int>(rows_kv);
  x.pitch = static_cast<int>(pitch);
  x.v_pitch = static_cast<int>(v_pitch);
  x.packed = packed;
  x.v_stride = static_cast<int>(problem.head_dim_v);
  x.token_scales = scheme.granularity == ScaleGranularity::token;
  x.offset_blocks = blocks ? static_cast<int>(rows_q / kTileTokens) : 1;
  Carver carver(base);
  carver.take(x.q, planes_q * rows_q * pitch);
  carver.take(x.k, planes_kv * rows_kv * pitch);
  std::uint16_t* v_half = nullptr;
  if (half) {
    carver.take(v_half, planes_kv * rows_kv * v_pitch);
    x.v_half = v_half;
  } else {
    carver.take(x.v, planes_kv * rows_kv * problem.head_dim_v);
    carver.take(x.v_scales, sequences_kv * problem.head_dim_v);
  }
  carver.take(x.q_scales, planes_q * rows_q / (x.token_scales ? 1 : 4));
  carver.take(x.k_scales, planes_kv * rows_kv / (x.token_scales ? 1 : 16));

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
  if (smooth_v || !half) carver.take(s.v_sums, planes_kv * rows_kv / quant::kKeyBlock * dv);
  if (smooth_q) {
    carver.take(s.q_means, (blocks ? planes_q * rows_q / quant::kQueryBlock : sequences_q) * d);
  }
  if (smooth_k) carver.take(s.k_means, sequences_kv * d);
  if (tensor) {
    carver.take(s.q_largest, sequences_q * d);
    carver.take(s.k_largest, sequences_kv * d);
  }
  if (!half) {
    const std::size_t first = carver.bytes();
    carver.take(s.counters, kCounterInts + 2 * (2 * sequences_kv + sequences_q));
    carver.take(s.v_largest, sequences_kv * dv);
    s.cleared_bytes = carver.bytes() - first;
  }
  to.bytes = carver.bytes();
  return to;
}

}  // namespace tessera::cuda
