#include "cuda/sm80/forward.hpp"

#include <fmt/format.h>

#include "cuda/host/parameters.hpp"

namespace tessera::cuda::sm80 {
namespace {

bool wants_extras(const Problem& problem) {
  return problem.softcap > 0 || problem.bias || problem.alibi || problem.mask || problem.sink ||
         problem.dropout_p > 0 || !(problem.scale > 0);
}

/// The first variant that takes the problem: head dims ascend.
const ForwardVariant* choose(const Problem& problem) {
  const int shared_bytes = device_info(problem.device.index).shared_bytes;
  for (const auto variants : {forward_d64(), forward_d96(), forward_d128(), forward_d192(),
                              forward_d256(), forward_d512()}) {
    for (const ForwardVariant& variant : variants) {
      const ForwardConfig& c = variant.config;
      if (c.dtype == problem.dtype && c.extras == wants_extras(problem) &&
          problem.head_dim <= c.head_dim && problem.head_dim_v <= c.largest_head_dim_v() &&
          static_cast<int>(c.shared_bytes()) <= shared_bytes) {
        return &variant;
      }
    }
  }
  return nullptr;
}

}  // namespace

std::string Forward::config() const {
  const ForwardConfig& c = variant_.config;
  return fmt::format("tile={}x{} head_dim={},{} warps={} stages={} shared={}K{}", c.tile_m,
                     c.tile_n, c.head_dim, c.head_dim_v, c.warps, c.stages, c.shared_bytes() / 1024,
                     c.extras ? " extras" : "");
}

Status Forward::enqueue(const Arguments& arguments, cudaStream_t stream) const {
  const Parameters p = make_parameters(problem_, arguments);
  return for_value_columns(p, variant_.config.head_dim_v, size_of(problem_.dtype),
                           [&](const Parameters& part) { return variant_.enqueue(part, stream); });
}

std::string reject_forward(const Problem& problem) {
  if (problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    return fmt::format("computes f16 and bf16, not {}", name_of(problem.dtype));
  }
  if (choose(problem) == nullptr) return "too little shared memory on this device";
  return {};
}

std::unique_ptr<Kernel> make_forward(const Problem& problem) {
  return std::make_unique<Forward>(problem, *choose(problem));
}

}  // namespace tessera::cuda::sm80
