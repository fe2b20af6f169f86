#include "cuda/sm90/row.hpp"

#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/host/reject.hpp"
#include "cuda/sm90/backward.hpp"
#include "cuda/sm90/forward.hpp"
#include "cuda/sm90/packed.hpp"
#include "cuda/sm90/sage_row.hpp"

namespace tessera::cuda::sm90 {
namespace {

#if TESSERA_WITH_SM90
constexpr int kHopper = 90;

/// What both rows reject.
std::string reject_here(const Problem& problem) {
  if (const int chip = device_info(problem.device.index).compute_capability; chip != kHopper) {
    return formatted("needs sm_90, this is sm_{}", chip);
  }
  return {};
}

std::string reject(const Problem& problem) {
  if (std::string reason = reject_common(problem); !reason.empty()) return reason;
  if (std::string reason = reject_here(problem); !reason.empty()) return reason;
  return problem.pass == Pass::forward ? reject_forward(problem) : reject_backward(problem);
}
std::unique_ptr<Kernel> make(const Problem& problem) {
  return problem.pass == Pass::forward ? make_forward(problem) : make_backward(problem);
}
std::string reject_quantised(const Problem& problem) {
  if (std::string reason = reject_anywhere(problem); !reason.empty()) return reason;
  if (!problem.quantised()) return "precision exact: this row quantises";
  if (std::string reason = reject_here(problem); !reason.empty()) return reason;
  return reject_sage(problem);
}
std::string reject_split(const Problem& problem) {
  if (std::string reason = reject_common(problem); !reason.empty()) return reason;
  if (std::string reason = reject_here(problem); !reason.empty()) return reason;
  return reject_packed(problem);
}
constexpr auto kMake = make;
constexpr auto kMakeSplit = make_packed;
constexpr auto kMakeSage = make_sage;
#else
std::string reject(const Problem&) { return "this build has no code for sm_90a"; }
constexpr auto reject_quantised = reject;
constexpr auto reject_split = reject;
constexpr std::unique_ptr<Kernel> (*kMake)(const Problem&) = nullptr;
constexpr auto kMakeSage = kMake;
constexpr auto kMakeSplit = kMake;
#endif

}  // namespace

const Row kSm90Row{"cuda_sm90",
                   "f16 bf16, forward (head dims to 256, no dropout) and backward (to 128), wgmma",
                   no_device, reject, kMake};
const Row kSplitKvRow{
    "cuda_split_kv_sm90",
    "f16 bf16, forward, at most 64 queries, head dims to 128, wgmma, masks by position and length",
    no_device, reject_split, kMakeSplit};
const Row kSageRow{
    "cuda_sage_sm90",
    "f32 f16 bf16, sage8 and sage4, forward, head dims to 256, wgmma in 8 bits, all but dropout, "
    "bias and 16-bit PV",
    no_device, reject_quantised, kMakeSage};

}  // namespace tessera::cuda::sm90
