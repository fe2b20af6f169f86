#include "cuda/sm90/sage.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/host/parameters.hpp"
#include "cuda/quant/quantise.hpp"
#include "cuda/sm90/sage_row.hpp"
#include "cuda/sm90/tensor_map.hpp"
#include "quant/scheme.hpp"

namespace tessera::cuda::sm90 {
namespace {

constexpr int kLargestHeadDim = 256;

SageConfig::Scope scope_of(const Problem& problem) {
  const Quantization& scheme = problem.quantization;
  const bool everything = problem.softcap > 0 || problem.bias || problem.alibi || problem.mask ||
                          problem.sink || !(problem.scale > 0) ||
                          scheme.granularity == ScaleGranularity::token ||
                          scheme.smooth_q == SmoothQ::block;
  if (everything) return SageConfig::everything;
  return scheme.smooth_q == SmoothQ::tensor ? SageConfig::smooth_q : SageConfig::plain;
}

/// Whether blocks convert queries themselves, not the quantise kernels before them.
bool converts_queries(const Problem& problem, const Parameters& p, const SageConfig& config) {
  return config.converts_queries() && p.q.vectors && problem.head_dim % 8 == 0 &&
         problem.quantization.granularity == ScaleGranularity::thread;
}

/// A tile of queries that overlaps several rows of a block mask visits what any of them lists, with
/// a test of each element.
bool overlaps_blocks(const Problem& problem, const SageConfig& config) {
  return problem.block_mask && problem.block_q % config.tile_m != 0;
}

std::int64_t works_of(const Problem& problem, const SageConfig& config) {
  return (problem.seq_q + config.tile_m - 1) / config.tile_m * problem.heads_q * problem.batch;
}

/// Which works are shared out along their keys: of problems whose works are all alike.
LastRound last_round_of(const Problem& problem, const SageConfig& config) {
  const bool alike = !problem.causal && !problem.windowed() && !problem.varlen &&
                     !problem.block_mask && !problem.q_lens && !problem.kv_lens;
  if (!alike || !config.shares || problem.head_dim_v > config.head_dim_v) return {};
  const std::int64_t works = works_of(problem, config);
  const std::int64_t steps = (problem.seq_kv + config.tile_n - 1) / config.tile_n;
  const int blocks = device_info(problem.device.index).multiprocessors;
  constexpr int kMostWarps = 12;
  if (works > std::numeric_limits<int>::max() / 2 ||
      blocks * kMostWarps > kCounterInts - kFirstArrival) {
    return {};
  }
  return last_round(static_cast<int>(works), blocks, static_cast<int>(steps));
}

/// What its shares leave.
std::size_t share_bytes(const Problem& problem, const SageConfig& config) {
  const LastRound last = last_round_of(problem, config);
  const int works = static_cast<int>(works_of(problem, config));
  return last.shares(works) * config.share_floats() * sizeof(float);
}

/// The variant for a problem: of its head dims and scope, with the largest tiles that fit the
/// blocks of its mask, or else the smallest; one that shares keys where there are any to share.
const SageVariant& choose(const Problem& problem) {
  const bool half = problem.head_dim <= 64 && problem.head_dim_v <= 64;
  const auto variants = half ? sage_d64() : problem.head_dim <= 128 ? sage_d128() : sage_d256();
  const SageConfig::Scope scope = scope_of(problem);
  const auto rank = [&problem, scope](const SageVariant& variant) {
    const SageConfig& c = variant.config;
    const bool overlaps = overlaps_blocks(problem, c);
    const bool in_vain = c.shares && share_bytes(problem, c) == 0;
    return std::tuple(c.scope != scope || in_vain, overlaps, overlaps ? c.tile_m : -c.tile_m,
                      !c.shares);
  };
  return *std::ranges::min_element(variants, {}, rank);
}

/// Operands as the copy engine sees them: bytes travel in pairs.
std::optional<TensorMaps> tensor_maps(const Problem& problem, const Parameters& p,
                                      const QuantisedOperands& x, const SageConfig& c) {
  const std::int64_t batch = problem.varlen ? 1 : problem.batch;
  const auto plane = [&](void* data, std::int64_t heads, std::int64_t rows, std::int64_t bytes,
                         int box_rows, int box_bytes) {
    const Rows all = {data, heads * rows * bytes / 2, rows * bytes / 2, bytes / 2, true};
    return tensor_map(
        all, {DType::f16, bytes / 2, rows, heads, batch, box_rows, box_bytes % 128 == 0 ? 64 : 32});
  };
  // Nobody uses q's map where blocks convert queries: any memory will do.
  const auto q = plane(x.q != nullptr ? x.q : x.k, p.heads_q, x.rows_q, x.pitch, 64, c.head_dim);
  const auto k = plane(x.k, p.heads_kv, x.rows_kv, x.pitch, c.tile_n, c.head_dim);
  // A part of V's channels: the planes of all of them lie between heads.
  const Rows channels = {x.v, std::int64_t{p.heads_kv} * x.v_stride * x.rows_kv / 2,
                         std::int64_t{x.v_stride} * x.rows_kv / 2, x.rows_kv / 2, true};
  const auto v = tensor_map(channels, {DType::f16, x.rows_kv / 2, p.head_dim_v, p.heads_kv, batch,
                                       c.head_dim_v, c.tile_n % 128 == 0 ? 64 : 32});
  if (!q || !k || !v) return std::nullopt;
  return TensorMaps{*q, *k, *v};
}

class SageForward final : public CudaKernel {
 public:
  explicit SageForward(const Problem& problem)
      : CudaKernel(problem),
        variant_(choose(problem)),
        last_(last_round_of(problem, variant_.config)),
        operand_bytes_(quantised_workspace(problem, nullptr).bytes),
        bytes_(operand_bytes_ + share_bytes(problem, variant_.config)) {}

  std::string config() const override {
    const SageConfig& c = variant_.config;
    return formatted("tile={}x{} head_dim={},{} warpgroups={}+1 stages={},{} shared={}K{}{}{}",
                     c.tile_m, c.tile_n, c.head_dim, c.head_dim_v, c.warpgroups(), c.q_stages,
                     c.stages, c.shared_bytes() / 1024, c.extras() ? " extras" : "",
                     last_.parts > 1 ? formatted(" last_round={}", last_.parts) : "",
                     problem_.precision == Precision::sage4
                         ? " (4-bit integers, multiplied as 8-bit ones: Hopper has no other)"
                         : "");
  }
  std::size_t workspace_bytes() const override { return bytes_; }

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override {
    const Parameters p = make_parameters(problem_, arguments);
    QuantisedWorkspace to = quantised_workspace(problem_, arguments.workspace);
    if (converts_queries(problem_, p, variant_.config)) to.operands.q = nullptr;
    const bool offsets = to.operands.row_offsets != nullptr &&
                         (p.lse.data != nullptr || problem_.softcap > 0 || problem_.sink);
    if (Status status = quantise(problem_, p, to, offsets, stream); !status.ok()) return status;
    SageOperands operands{to.operands, problem_.dtype, to.scratch.q_means,
                          quant::levels_of(problem_.precision)};
    if (!offsets) operands.tensors.row_offsets = nullptr;
    const DeviceInfo& device = device_info(problem_.device.index);
    return for_value_columns(
        p, variant_.config.head_dim_v, size_of(problem_.dtype), [&](const Parameters& part) {
          SageOperands own = operands;
          const std::int64_t first =
              (static_cast<std::byte*>(part.o.data) - static_cast<std::byte*>(p.o.data)) /
              size_of(problem_.dtype);
          own.tensors.v += first * own.tensors.rows_kv;
          own.tensors.v_scales += first;
          if (own.tensors.v_means != nullptr) own.tensors.v_means += first;
          TensorMaps maps{};
          if (problem_.seq_kv > 0 && problem_.seq_q > 0 && problem_.batch > 0) {
            const auto made = tensor_maps(problem_, part, own.tensors, variant_.config);
            if (!made) {
              return Status(StatusCode::device_error,
                            "cuda_sage_sm90 forward: the driver makes no tensor maps");
            }
            maps = *made;
          }
          int* const counter = to.scratch.counters + 1 + first / variant_.config.head_dim_v;
          const Sharing sharing{last_,
                                reinterpret_cast<float*>(arguments.workspace + operand_bytes_),
                                to.scratch.counters + kFirstArrival};
          return variant_.enqueue(part, maps, own, counter, sharing, device, stream);
        });
  }

 private:
  const SageVariant& variant_;
  const LastRound last_;
  const std::size_t operand_bytes_, bytes_;
};

}  // namespace

std::string reject_sage(const Problem& problem) {
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return formatted("head dims up to {}, not {} and {}", kLargestHeadDim, problem.head_dim,
                     problem.head_dim_v);
  }
  if (problem.quantization.pv != PvFormat::fp8) return "no PV in 16 bits";
  if (problem.dropout_p > 0) return "no dropout";
  if (problem.bias) return "no bias";
  return {};
}

std::unique_ptr<Kernel> make_sage(const Problem& problem) {
  return std::make_unique<SageForward>(problem);
}

}  // namespace tessera::cuda::sm90
