#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/kernel.hpp"
#include "cuda/sm80/f32_backward.hpp"
#include "cuda/sm80/f32_forward.hpp"
#include "cuda/sm80/row.hpp"

namespace tessera::cuda::sm80 {
namespace {

constexpr int kAmpere = 80;

std::string reject(const Problem& problem) {
  if (std::string reason = reject_common(problem); !reason.empty()) return reason;
  if (const int chip = device_info(problem.device.index).compute_capability; chip < kAmpere) {
    return formatted("needs sm_80 or later, this is sm_{}", chip);
  }
  if (problem.dtype != DType::f32) return formatted("computes f32, not {}", name_of(problem.dtype));
  return problem.pass == Pass::forward ? reject_f32_forward(problem) : reject_f32_backward(problem);
}

std::unique_ptr<Kernel> make(const Problem& problem) {
  return problem.pass == Pass::forward ? make_f32_forward(problem) : make_f32_backward(problem);
}

}  // namespace

const Row kSm80F32Row{
    "cuda_sm80_f32",
    "f32, forward and backward, head dims to 512, tensor cores on three bf16 terms", no_device,
    reject, make};

}  // namespace tessera::cuda::sm80
