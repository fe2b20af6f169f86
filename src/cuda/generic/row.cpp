#include "cuda/generic/generic.hpp"
#include "cuda/host/kernel.hpp"

namespace tessera::cuda::generic {

const Row kGenericRow{
    "cuda_generic",
    "f32 f16 bf16, forward and backward, every feature and head dim, f32 arithmetic",
    no_device,
    reject_common,
    [](const Problem& problem) {
      return problem.pass == Pass::forward ? make_forward(problem) : make_backward(problem);
    },
};

}  // namespace tessera::cuda::generic
