#include "cuda/sm90/backward.hpp"

#include <algorithm>

#include "core/format.hpp"
#include "cuda/sm80/backward.hpp"
#include "cuda/sm90/backward_variants.hpp"

namespace tessera::cuda::sm90 {
namespace {

constexpr int kLargestHeadDim = 128;

const BackwardVariant* choose(const Problem& problem) {
  return sm80::choose_backward(problem, {backward_d64(), backward_d128()});
}

}  // namespace

std::string reject_backward(const Problem& problem) {
  if (problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    return formatted("computes f16 and bf16, not {}", name_of(problem.dtype));
  }
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return formatted("backward: head dims up to {}, not {} and {}", kLargestHeadDim,
                     problem.head_dim, problem.head_dim_v);
  }
  return {};
}

std::unique_ptr<Kernel> make_backward(const Problem& problem) {
  return std::make_unique<sm80::Backward>(problem, *choose(problem));
}

}  // namespace tessera::cuda::sm90
