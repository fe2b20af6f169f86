#include "cuda/sm80/row.hpp"

#include <fmt/format.h>

#include "cuda/host/launch.hpp"
#include "cuda/sm80/forward.hpp"

namespace tessera::cuda::sm80 {
namespace {

constexpr int kAmpere = 80;

std::string reject(const Problem& problem) {
  if (std::string reason = reject_common(problem); !reason.empty()) return reason;
  if (const int chip = device_info(problem.device.index).compute_capability; chip < kAmpere) {
    return fmt::format("needs sm_80 or later, this is sm_{}", chip);
  }
  return problem.pass == Pass::forward ? reject_forward(problem) : "no backward pass yet";
}

}  // namespace

const Row kSm80Row{"cuda_sm80", "f16 bf16, forward, head dims to 256, tensor cores", no_device,
                   reject, make_forward};

}  // namespace tessera::cuda::sm80
