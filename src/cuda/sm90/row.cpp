#include "cuda/sm90/row.hpp"

#include <fmt/format.h>

#include "cuda/host/launch.hpp"
#include "cuda/sm90/backward.hpp"
#include "cuda/sm90/forward.hpp"

namespace tessera::cuda::sm90 {
namespace {

#if TESSERA_WITH_SM90
constexpr int kHopper = 90;

std::string reject(const Problem& problem) {
  if (std::string reason = reject_common(problem); !reason.empty()) return reason;
  if (const int chip = device_info(problem.device.index).compute_capability; chip != kHopper) {
    return fmt::format("needs sm_90, this is sm_{}", chip);
  }
  return problem.pass == Pass::forward ? reject_forward(problem) : reject_backward(problem);
}
std::unique_ptr<Kernel> make(const Problem& problem) {
  return problem.pass == Pass::forward ? make_forward(problem) : make_backward(problem);
}
constexpr auto kMake = make;
#else
std::string reject(const Problem&) { return "this build has no code for sm_90a"; }
constexpr std::unique_ptr<Kernel> (*kMake)(const Problem&) = nullptr;
#endif

}  // namespace

const Row kSm90Row{"cuda_sm90",
                   "f16 bf16, forward (head dims to 256, no dropout) and backward (to 128), wgmma",
                   no_device, reject, kMake};

}  // namespace tessera::cuda::sm90
