// Row cuda_sage_sm80: which quantised problems it takes, and how they are computed.
#include "cuda/sm80/sage.hpp"

#include <memory>
#include <string>

#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/host/parameters.hpp"
#include "cuda/host/reject.hpp"
#include "cuda/host/tiles.hpp"
#include "cuda/quant/quantise.hpp"
#include "cuda/sm80/row.hpp"

namespace tessera::cuda::sm80 {
namespace {

constexpr int kAmpere = 80, kAda = 89, kHopper = 90;
constexpr int kLargestHeadDim = 256;

ValueFormat value_format(const Problem& problem) {
  if (problem.quantization.pv == PvFormat::fp8) return ValueFormat::e4m3;
  return problem.dtype == DType::f16 ? ValueFormat::f16 : ValueFormat::bf16;
}

/// The first variant that takes the problem: head dims ascend.
const SageVariant* choose(const Problem& problem) {
  const int shared_bytes = device_info(problem.device.index).shared_bytes;
  for (const auto variants : {sage_d64(), sage_d128(), sage_d256()}) {
    for (const SageVariant& variant : variants) {
      const SageConfig& c = variant.config;
      if (c.four_bits == (problem.precision == Precision::sage4) &&
          c.values == value_format(problem) && problem.head_dim <= c.head_dim &&
          problem.head_dim_v <= c.head_dim && static_cast<int>(c.shared_bytes()) <= shared_bytes) {
        return &variant;
      }
    }
  }
  return nullptr;
}

/// What a chip has no products for, and what it multiplies instead (ptx/mma_8bit.cuh).
std::string substitutes(const SageConfig& c, int chip) {
  std::string text;
  if (c.four_bits && chip >= kHopper) {
    text += " (4-bit integers, multiplied as 8-bit ones: this chip has no other)";
  }
  if (!c.half() && chip < kAda) text += " (E4M3 in f16: this chip has no 8-bit floats)";
  return text;
}

class SageForward final : public CudaKernel {
 public:
  SageForward(const Problem& problem, const SageVariant& variant)
      : CudaKernel(problem),
        variant_(variant),
        bytes_(quantised_workspace(problem, nullptr, true).bytes) {}

  std::string config() const override {
    const SageConfig& c = variant_.config;
    constexpr const char* kNames[] = {"e4m3", "f16", "bf16"};
    return formatted("tile={}x{} head_dim={} warps={} stages={} shared={}K int{} pv={}{}", c.tile_m,
                     c.tile_n, c.head_dim, c.warps, c.stages, c.shared_bytes() / 1024,
                     c.four_bits ? 4 : 8, kNames[static_cast<int>(c.values)],
                     substitutes(c, device_info(problem_.device.index).compute_capability));
  }
  std::size_t workspace_bytes() const override { return bytes_; }

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override {
    const Parameters p = make_parameters(problem_, arguments);
    QuantisedWorkspace to = quantised_workspace(problem_, arguments.workspace, true);
    // Without a softcap the softmax does not see them; the lse and the sink do.
    const bool offsets = p.lse.data != nullptr || problem_.softcap > 0 || problem_.sink;
    if (Status status = quantise(problem_, p, to, offsets, stream); !status.ok()) return status;
    if (!offsets) to.operands.row_offsets = nullptr;
    const Tiles tiles =
        tiles_of(problem_, Side::queries, SageConfig::tile_m, variant_.config.blocks);
    return variant_.enqueue(p, to.operands, problem_.dtype, tiles, stream);
  }

 private:
  const SageVariant& variant_;
  const std::size_t bytes_;
};

std::string reject(const Problem& problem) {
  if (std::string reason = reject_anywhere(problem); !reason.empty()) return reason;
  if (!problem.quantised()) return "precision exact: this row quantises";
  if (const int chip = device_info(problem.device.index).compute_capability; chip < kAmpere) {
    return formatted("needs sm_80 or later, this is sm_{}", chip);
  }
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return formatted("head dims up to {}, not {} and {}", kLargestHeadDim, problem.head_dim,
                     problem.head_dim_v);
  }
  if (choose(problem) == nullptr) return "too little shared memory on this device";
  return {};
}

std::unique_ptr<Kernel> make(const Problem& problem) {
  return std::make_unique<SageForward>(problem, *choose(problem));
}

}  // namespace

const Row kSageRow{
    "cuda_sage_sm80",
    "f32 f16 bf16, sage8 and sage4, forward, head dims to 256, tensor cores in 8 and 4 bits",
    no_device, reject, make};

}  // namespace tessera::cuda::sm80
