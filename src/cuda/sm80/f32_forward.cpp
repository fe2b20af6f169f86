#include "cuda/sm80/f32_forward.hpp"

#include "core/format.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/parameters.hpp"

namespace tessera::cuda::sm80 {
namespace {

bool wants_extras(const Problem& problem) {
  return problem.softcap > 0 || problem.bias || problem.alibi || problem.mask || problem.sink ||
         problem.dropout_p > 0 || !(problem.scale > 0);
}

/// The first variant that takes the problem: head dims ascend.
const F32ForwardVariant* choose(const Problem& problem) {
  const int shared_bytes = device_info(problem.device.index).shared_bytes;
  for (const auto variants :
       {f32_forward_d64(), f32_forward_d128(), f32_forward_d256(), f32_forward_d512()}) {
    for (const F32ForwardVariant& variant : variants) {
      const F32ForwardConfig& c = variant.config;
      if (c.extras == wants_extras(problem) && problem.head_dim <= c.head_dim &&
          problem.head_dim_v <= c.head_dim_v &&
          static_cast<int>(c.shared_bytes()) <= shared_bytes) {
        return &variant;
      }
    }
  }
  return nullptr;
}

}  // namespace

SplitShape split_keys(const Problem& problem, std::int64_t columns) {
  return {problem.varlen ? 1 : problem.batch, problem.heads_kv, problem.seq_kv,
          static_cast<int>(columns)};
}

std::string F32Forward::config() const {
  const F32ForwardConfig& c = variant_.config;
  return formatted("3 bf16 terms tile={}x{} head_dim={},{} warps={}x{} stages={} shared={}K{}",
                   c.tile_m, c.tile_n, c.head_dim, c.head_dim_v, c.warps / c.parts, c.parts,
                   c.stages, c.shared_bytes() / 1024, c.extras ? " extras" : "");
}

std::size_t F32Forward::workspace_bytes() const {
  return split_keys(problem_, problem_.head_dim).bytes() +
         split_keys(problem_, problem_.head_dim_v).bytes();
}

Status F32Forward::enqueue(const Arguments& arguments, cudaStream_t stream) const {
  Parameters p = make_parameters(problem_, arguments);
  const SplitShape k = split_keys(problem_, problem_.head_dim);
  const SplitShape v = split_keys(problem_, problem_.head_dim_v);
  std::byte* const v_terms = arguments.workspace + k.bytes();
  if (Status status = split_rows(k, p.k, arguments.workspace, stream); !status.ok()) return status;
  if (Status status = split_rows(v, p.v, v_terms, stream); !status.ok()) return status;
  p.k = split_rows_at(k, arguments.workspace);
  p.v = split_rows_at(v, v_terms);
  return variant_.enqueue(p, stream);
}

std::string reject_f32_forward(const Problem& problem) {
  if (choose(problem) == nullptr) return "too little shared memory on this device";
  return {};
}

std::unique_ptr<Kernel> make_f32_forward(const Problem& problem) {
  return std::make_unique<F32Forward>(problem, *choose(problem));
}

}  // namespace tessera::cuda::sm80
