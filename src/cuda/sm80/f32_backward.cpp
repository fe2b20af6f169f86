#include "cuda/sm80/f32_backward.hpp"

#include <algorithm>

#include "core/format.hpp"
#include "cuda/algo/gradient_passes.hpp"
#include "cuda/generic/generic.hpp"
#include "cuda/host/device.hpp"
#include "cuda/host/parameters.hpp"

namespace tessera::cuda::sm80 {
namespace {

constexpr int kLargestHeadDim = 512;
constexpr std::size_t kAlignment = 64;

bool wants_extras(const Problem& problem) {
  return problem.softcap > 0 || problem.bias || problem.alibi || problem.mask ||
         problem.dropout_p > 0 || !(problem.scale > 0);
}

/// The first variant that takes the problem: head dims ascend. Empty if there is none.
F32BackwardVariant choose(const Problem& problem) {
  const int shared_bytes = device_info(problem.device.index).shared_bytes;
  const bool extras = wants_extras(problem);
  for (const F32BackwardVariant variant :
       {f32_backward_d64(extras), f32_backward_d128(extras), f32_backward_d256(extras),
        f32_backward_d384(), f32_backward_d512()}) {
    const bool fits =
        std::all_of(variant.begin(), variant.end(), [&](const F32BackwardKernel& kernel) {
          return std::max(problem.head_dim, problem.head_dim_v) <= kernel.config.head_dim &&
                 static_cast<int>(kernel.config.shared_bytes()) <= shared_bytes;
        });
    if (fits) return variant;
  }
  return {};
}

bool is_wanted(F32Gradients gradients, const Gradients& g) {
  switch (gradients) {
    case F32Gradients::d_q:
      return g.d_q.data != nullptr;
    case F32Gradients::d_k:
      return g.d_k.data != nullptr;
    case F32Gradients::d_v:
      return g.d_v.data != nullptr;
    default:
      return g.d_k.data != nullptr || g.d_v.data != nullptr;
  }
}

}  // namespace

/// Where things lie in the workspace, in bytes, behind delta: linear in the rows of all tensors.
struct F32Backward::Workspace {
  SplitShape q, k, v, d_o;  ///< Empty if the kernels read f32.
  std::size_t q_at, k_at, v_at, d_o_at, end;
};

bool F32Backward::reads_terms() const { return !variant_.front().config.slices; }

F32Backward::Workspace F32Backward::workspace() const {
  const std::int64_t batch = problem_.varlen ? 1 : problem_.batch;
  const auto shape = [&](std::int64_t heads, std::int64_t seq, std::int64_t columns) {
    return reads_terms() ? SplitShape{batch, heads, seq, static_cast<int>(columns)} : SplitShape{};
  };
  Workspace w;
  w.q = shape(problem_.heads_q, problem_.seq_q, problem_.head_dim);
  w.k = shape(problem_.heads_kv, problem_.seq_kv, problem_.head_dim);
  w.v = shape(problem_.heads_kv, problem_.seq_kv, problem_.head_dim_v);
  w.d_o = shape(problem_.heads_q, problem_.seq_q, problem_.head_dim_v);
  const std::size_t delta = row_scalar_count(problem_) * sizeof(float);
  w.q_at = (delta + kAlignment - 1) / kAlignment * kAlignment;
  w.k_at = w.q_at + w.q.bytes();
  w.v_at = w.k_at + w.k.bytes();
  w.d_o_at = w.v_at + w.v.bytes();
  w.end = w.d_o_at + w.d_o.bytes();
  return w;
}

std::string F32Backward::config() const {
  std::string text = formatted("3 bf16 terms head_dim={}", variant_.front().config.head_dim);
  for (const F32BackwardKernel& kernel : variant_) {
    const F32BackwardConfig& c = kernel.config;
    constexpr const char* kNames[] = {"d_q", "d_kv", "d_k", "d_v"};
    text += formatted(" {}: tile={}x{} warps={} stages={} shared={}K",
                      kNames[static_cast<int>(c.gradients)], c.outer, c.inner, c.warps, c.stages,
                      c.shared_bytes() / 1024);
  }
  return text + (variant_.front().config.extras ? " extras" : "");
}

std::size_t F32Backward::workspace_bytes() const { return workspace().end; }

Status F32Backward::enqueue(const Arguments& arguments, cudaStream_t stream) const {
  const Workspace w = workspace();
  const Parameters p = make_parameters(problem_, arguments);
  const Gradients g =
      make_gradients(problem_, arguments, reinterpret_cast<float*>(arguments.workspace));
  if (Status status = compute_delta(problem_.dtype, p, g, stream); !status.ok()) return status;

  if (g.d_q.data != nullptr || g.d_k.data != nullptr || g.d_v.data != nullptr) {
    struct Split {
      const SplitShape& shape;
      const Rows& from;
      std::size_t at;
    };
    for (const Split& x : {Split{w.q, p.q, w.q_at}, Split{w.k, p.k, w.k_at},
                           Split{w.v, p.v, w.v_at}, Split{w.d_o, g.d_o, w.d_o_at}}) {
      Status status = split_rows(x.shape, x.from, arguments.workspace + x.at, stream);
      if (!status.ok()) return status;
    }
    const SplitInputs terms{split_rows_at(w.q, arguments.workspace + w.q_at),
                            split_rows_at(w.k, arguments.workspace + w.k_at),
                            split_rows_at(w.v, arguments.workspace + w.v_at),
                            split_rows_at(w.d_o, arguments.workspace + w.d_o_at)};
    for (const F32BackwardKernel& kernel : variant_) {
      if (!is_wanted(kernel.config.gradients, g)) continue;
      if (Status status = kernel.enqueue(p, g, terms, stream); !status.ok()) return status;
    }
  }
  if (g.d_bias.data != nullptr) {
    if (Status status = generic::bias_gradient(problem_.dtype, p, g, stream); !status.ok()) {
      return status;
    }
  }
  return g.d_sink != nullptr ? sink_gradient(p, g, stream) : Status();
}

std::string reject_f32_backward(const Problem& problem) {
  if (std::max(problem.head_dim, problem.head_dim_v) > kLargestHeadDim) {
    return formatted("head dims up to {}, not {} and {}", kLargestHeadDim, problem.head_dim,
                     problem.head_dim_v);
  }
  if (choose(problem).empty()) return "too little shared memory on this device";
  return {};
}

std::unique_ptr<Kernel> make_f32_backward(const Problem& problem) {
  return std::make_unique<F32Backward>(problem, choose(problem));
}

}  // namespace tessera::cuda::sm80
