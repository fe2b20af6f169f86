// Row cuda_split_kv_sm90: from a problem to its kernel.
#include "cuda/sm90/packed.hpp"

#include <algorithm>
#include <optional>

#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/host/parameters.hpp"
#include "cuda/sm90/forward.hpp"
#include "cuda/sm90/packed_variants.hpp"
#include "cuda/sm90/tensor_map.hpp"

namespace tessera::cuda::sm90 {
namespace {

constexpr int kGroupRows = 64;
constexpr int kVector = 8;  // elements of 16 bytes
constexpr std::int64_t kMostQueries = kGroupRows;
constexpr std::int64_t kLeastKeys = 512;
constexpr std::int64_t kLargestHeadDim = 128;

/// Rows that a head takes: whole warps' rows, a power of two.
int rows_of_head(const Problem& problem) {
  int rows = kOutputRows;
  while (rows < problem.seq_q) rows *= 2;
  return rows;
}

/// The smallest head dim, with as few rows as hold a group of heads.
const PackedVariant& choose(const Problem& problem) {
  const std::int64_t wanted = problem.group() * rows_of_head(problem);
  const PackedVariant* best = nullptr;
  for (const PackedVariant& variant : packed_variants()) {
    const ForwardConfig& c = variant.config;
    if (c.dtype != problem.dtype || std::max(problem.head_dim, problem.head_dim_v) > c.head_dim) {
      continue;
    }
    const auto rank = [wanted](const ForwardConfig& config) {
      return std::pair(config.head_dim, (config.tile_m > kGroupRows) != (wanted > kGroupRows));
    };
    if (best == nullptr || rank(c) < rank(best->config)) best = &variant;
  }
  return *best;
}

int chunks_of(const Problem& problem, const ForwardConfig& config) {
  const std::int64_t rows = problem.group() * rows_of_head(problem);
  return static_cast<int>((rows + config.tile_m - 1) / config.tile_m);
}

/// Parts of the keys that fill the chip: the fewest that come near the best use of its blocks.
int choose_splits(const Problem& problem, const ForwardConfig& config) {
  constexpr std::int64_t kLeastTiles = 4;  // of a part
  constexpr std::int64_t kMostWaves = 4;
  constexpr double kNear = 0.97;
  const std::int64_t slots = device_info(problem.device.index).multiprocessors;
  const std::int64_t works =
      std::max<std::int64_t>(problem.batch * problem.heads_kv * chunks_of(problem, config), 1);
  const std::int64_t most = std::clamp<std::int64_t>(
      std::min(problem.seq_kv / (kLeastTiles * config.tile_n), kMostWaves * slots / works), 1,
      slots);
  const auto use = [&](std::int64_t splits) {
    const std::int64_t waves = (works * splits + slots - 1) / slots;
    return static_cast<double>(works * splits) / static_cast<double>(waves * slots);
  };
  double best = 0;
  for (std::int64_t splits = 1; splits <= most; ++splits) best = std::max(best, use(splits));
  int splits = 1;
  while (use(splits) < kNear * best) ++splits;
  return splits;
}

class Packed final : public CudaKernel {
 public:
  explicit Packed(const Problem& problem)
      : CudaKernel(problem),
        variant_(choose(problem)),
        splits_(choose_splits(problem, variant_.config)),
        general_(general_forward(problem)) {}

  std::string config() const override {
    const ForwardConfig& c = variant_.config;
    return formatted("{} splits of the keys, {} heads x {} rows, tile={}x{} stages={}", splits_,
                     c.tile_m / rows_of_head(problem_), rows_of_head(problem_), c.tile_m, c.tile_n,
                     c.k_stages);
  }
  std::size_t workspace_bytes() const override {
    const std::size_t parts =
        row_scalar_count(problem_) * splits_ * (problem_.head_dim_v + 1) * sizeof(float);
    return std::max(parts, sizeof(int));
  }

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override {
    const Parameters p = make_parameters(problem_, arguments);
    const DeviceInfo& device = device_info(problem_.device.index);
    const std::optional<ForwardMaps> maps = tensor_maps(p);
    if (!maps) {  // tensors that the copy engine cannot read
      return general_.enqueue(p, nullptr, reinterpret_cast<int*>(arguments.workspace), device,
                              stream);
    }
    Packing packing{rows_of_head(problem_), chunks_of(problem_, variant_.config), splits_, {}};
    packing.partials.rows = static_cast<std::int64_t>(row_scalar_count(problem_));
    packing.partials.o = reinterpret_cast<float*>(arguments.workspace);
    packing.partials.lse =
        packing.partials.o + splits_ * packing.partials.rows * problem_.head_dim_v;
    const Status parts = variant_.enqueue(p, *maps, packing, device, stream);
    if (!parts.ok()) return parts;
    return merge_splits(problem_.dtype, p, packing.partials, splits_, stream);
  }

 private:
  std::optional<ForwardMaps> tensor_maps(const Parameters& p) const {
    if (problem_.batch == 0 || problem_.seq_q == 0) return std::nullopt;
    const ForwardConfig& c = variant_.config;
    const int rows = rows_of_head(problem_);
    const auto q = tensor_map(p.q, {c.dtype, problem_.head_dim, problem_.seq_q, problem_.heads_q,
                                    problem_.batch, rows, c.panel(), kGroupRows / rows});
    const auto keys = [&](const Rows& tensor, std::int64_t head_dim) {
      return tensor_map(tensor, {c.dtype, head_dim, problem_.seq_kv, problem_.heads_kv,
                                 problem_.batch, c.tile_n, c.panel()});
    };
    const auto k = keys(p.k, problem_.head_dim), v = keys(p.v, problem_.head_dim_v);
    if (!q || !k || !v) return std::nullopt;
    return ForwardMaps{{*q, *k, *v}, {}};
  }

  const PackedVariant& variant_;
  const int splits_;
  const ForwardVariant& general_;
};

}  // namespace

std::string reject_packed(const Problem& problem) {
  if (problem.pass != Pass::forward) return "forward only";
  if (std::string reason = reject_forward(problem); !reason.empty()) return reason;
  if (wants_extras(problem)) {
    return "no softcap, bias, ALiBi, boolean mask or sink, and a scale above 0";
  }
  if (problem.block_mask) return "no block mask";
  if (problem.varlen) return "no packed sequences";
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return formatted("head dims up to {}", kLargestHeadDim);
  }
  if (problem.seq_q > kMostQueries) return formatted("at most {} queries", kMostQueries);
  if (problem.seq_kv < kLeastKeys) return formatted("at least {} keys", kLeastKeys);
  return {};
}

std::unique_ptr<Kernel> make_packed(const Problem& problem) {
  return std::make_unique<Packed>(problem);
}

}  // namespace tessera::cuda::sm90
