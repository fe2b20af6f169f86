#include "cuda/sm80/row.hpp"

#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/sm80/backward.hpp"
#include "cuda/sm80/forward.hpp"

namespace tessera::cuda::sm80 {
namespace {

constexpr int kAmpere = 80;

std::string reject(const Problem& problem) {
  if (std::string reason = reject_common(problem); !reason.empty()) return reason;
  if (const int chip = device_info(problem.device.index).compute_capability; chip < kAmpere) {
    return formatted("needs sm_80 or later, this is sm_{}", chip);
  }
  return problem.pass == Pass::forward ? reject_forward(problem) : reject_backward(problem);
}

std::unique_ptr<Kernel> make(const Problem& problem) {
  return problem.pass == Pass::forward ? make_forward(problem) : make_backward(problem);
}

}  // namespace

const Row kSm80Row{"cuda_sm80", "f16 bf16, forward and backward, head dims to 512, tensor cores",
                   no_device, reject, make};

}  // namespace tessera::cuda::sm80
