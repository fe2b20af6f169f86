#include "bench/contender.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "bench/blas.hpp"
#include "bench/buffer.hpp"
#include "bench/memory_probe.hpp"
#include "bench/standard.hpp"
#include "error.hpp"

namespace tessera::cli::bench {
namespace {

constexpr std::uint64_t kSeed = 1;

HostTensor normal_tensor(DType dtype, std::vector<std::int64_t> sizes, std::uint64_t stream) {
  HostTensor tensor(dtype, std::move(sizes));
  tensor.fill_normal(kSeed, stream);
  return tensor;
}

// Zeroed so that its pages exist before memory is measured.
HostTensor output_tensor(DType dtype, std::vector<std::int64_t> sizes) {
  HostTensor tensor(dtype, std::move(sizes));
  tensor.fill_zero();
  return tensor;
}

// The band whose density, with one global block row and column, comes nearest to the wanted one on
// a square of `blocks` by `blocks`.
std::int64_t band_for(double density, double blocks) {
  const auto density_of = [blocks](std::int64_t local) {
    const auto l = static_cast<double>(local);
    return (blocks + l * (2 * blocks - l - 1) + 2 * (blocks - 1 - l)) / (blocks * blocks);
  };
  std::int64_t local = 1;
  while (static_cast<double>(local + 1) < blocks &&
         std::abs(density_of(local + 1) - density) < std::abs(density_of(local) - density)) {
    ++local;
  }
  return local;
}

PlanOptions options_of(const Case& problem, const Variant& variant) {
  PlanOptions options;
  options.forward = problem.pass == Pass::forward;
  options.backward = problem.pass == Pass::backward;
  if (variant.impl != "auto") options.implementation = variant.impl;
  options.threads = variant.threads;
  return options;
}

class TesseraContender : public Contender {
 public:
  TesseraContender(const Case& problem, const Variant& variant, const BlockMask* mask,
                   Tensors& tensors)
      : pass_(problem.pass), tensors_(tensors), executor_(make_thread_pool(variant.threads)) {
    const Attention attention = to_attention(problem, variant.precision);
    inputs_ = tensors.inputs();
    if (mask != nullptr) {
      view_ = mask->view();
      inputs_.block_mask = &view_;
    }
    PlanOptions options = options_of(problem, variant);
    options.executor = executor_.get();
    plan_.emplace(require(Plan::create(attention, inputs_, options)));
    workspace_.emplace(options.forward ? plan_->forward_workspace_bytes()
                                       : plan_->backward_workspace_bytes());
  }

  void run() override {
    Run how;
    how.workspace = workspace_->data();
    how.workspace_bytes = workspace_->bytes();
    how.executor = executor_.get();
    const Outputs outputs = tensors_.outputs();
    require(pass_ == Pass::forward ? plan_->forward(inputs_, outputs, how)
                                   : plan_->backward(inputs_, outputs, tensors_.d_outputs(),
                                                     tensors_.d_inputs(), how));
  }

  std::string name() const override {
    return pass_ == Pass::forward ? plan_->forward_implementation()
                                  : plan_->backward_implementation();
  }
  Isa isa() const override { return isa_of_row(name()); }
  std::int64_t workspace_bytes() const override {
    return static_cast<std::int64_t>(workspace_->bytes());
  }

 private:
  Pass pass_;
  Tensors& tensors_;
  std::unique_ptr<Executor> executor_;
  Inputs inputs_;
  BlockMaskView view_;
  std::optional<Plan> plan_;
  std::optional<Buffer> workspace_;
};

class StandardContender : public Contender {
 public:
  StandardContender(const Case& problem, const Variant& variant, Tensors& tensors)
      : problem_(problem), tensors_(tensors), attention_(problem, variant.threads) {}

  void run() override {
    if (problem_.pass == Pass::forward) {
      attention_.forward(tensors_.inputs(), tensors_.outputs());
    } else {
      attention_.backward(tensors_.inputs(), tensors_.outputs(), tensors_.d_outputs(),
                          tensors_.d_inputs());
    }
  }

  std::string name() const override { return "standard"; }
  Isa isa() const override { return best_isa(); }
  std::int64_t workspace_bytes() const override { return standard_extra_bytes(problem_); }

 private:
  Case problem_;
  Tensors& tensors_;
  StandardAttention attention_;
};

}  // namespace

Tensors::Tensors(const Case& p) {
  const std::vector<std::int64_t> q_sizes{p.batch, p.heads_q, p.seq_q, p.head_dim};
  const std::vector<std::int64_t> k_sizes{p.batch, p.heads_kv, p.seq_kv, p.head_dim};
  const std::vector<std::int64_t> v_sizes{p.batch, p.heads_kv, p.seq_kv, p.head_dim_v};
  const std::vector<std::int64_t> o_sizes{p.batch, p.heads_q, p.seq_q, p.head_dim_v};
  q = normal_tensor(p.dtype, q_sizes, 0);
  k = normal_tensor(p.dtype, k_sizes, 1);
  v = normal_tensor(p.dtype, v_sizes, 2);
  o = output_tensor(p.dtype, o_sizes);
  if (p.pass == Pass::forward) return;
  lse = output_tensor(DType::f32, {p.batch, p.heads_q, p.seq_q});
  d_o = normal_tensor(p.dtype, o_sizes, 3);
  d_q = output_tensor(p.dtype, q_sizes);
  d_k = output_tensor(p.dtype, k_sizes);
  d_v = output_tensor(p.dtype, v_sizes);
}

Inputs Tensors::inputs() const {
  Inputs inputs;
  inputs.q = q.view();
  inputs.k = k.view();
  inputs.v = v.view();
  return inputs;
}

Outputs Tensors::outputs() const { return {o.view(), lse.view()}; }

OutputGradients Tensors::d_outputs() const { return {d_o.view(), {}}; }

InputGradients Tensors::d_inputs() const {
  InputGradients gradients;
  gradients.d_q = d_q.view();
  gradients.d_k = d_k.view();
  gradients.d_v = d_v.view();
  return gradients;
}

std::optional<BlockMask> build_mask(const Case& problem, const MaskChoice& choice) {
  const BlockShape shape{problem.seq_q, problem.seq_kv, choice.block_q, choice.block_kv};
  const auto blocks = static_cast<double>(shape.kv_blocks());
  switch (choice.pattern) {
    case Pattern::butterfly:
      return require(BlockMask::butterfly(shape));
    case Pattern::local_global:
      return require(BlockMask::local_global(shape, band_for(choice.density, blocks), 1));
    case Pattern::strided: {
      const auto stride = static_cast<std::int64_t>(std::max(1.0, std::round(std::sqrt(blocks))));
      return require(BlockMask::strided(shape, stride, stride));
    }
    case Pattern::random:
      return require(BlockMask::random(shape, 1, 1, choice.density, kSeed));
    default:
      return std::nullopt;
  }
}

void run_forward(const Case& problem, const BlockMask* mask, Tensors& tensors) {
  Inputs inputs = tensors.inputs();
  BlockMaskView view;
  if (mask != nullptr) {
    view = mask->view();
    inputs.block_mask = &view;
  }
  require(attention_forward(to_attention(problem), inputs, tensors.outputs()));
}

std::unique_ptr<Contender> make_contender(const Case& problem, const Variant& variant,
                                          const BlockMask* mask, Tensors& tensors) {
  if (variant.impl == "standard") {
    return std::make_unique<StandardContender>(problem, variant, tensors);
  }
  return std::make_unique<TesseraContender>(problem, variant, mask, tensors);
}

std::string row_refusal(const Case& problem, const Variant& variant, const Tensors& tensors) {
  if (variant.impl == "auto") return {};
  const Status status = Plan::create(to_attention(problem, variant.precision), tensors.inputs(),
                                     options_of(problem, variant))
                            .status();
  if (status.code() != StatusCode::unsupported) return {};
  return fmt::format("{} left out in {}: {}", variant.impl, tessera::name_of(variant.precision),
                     status.message());
}

std::string standard_refusal(const Case& problem) {
  if (!have_blas()) return "standard left out: this build found no BLAS";
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  const double elements = static_cast<double>(problem.seq_q) * static_cast<double>(problem.seq_kv);
  const double bytes = elements * (problem.pass == Pass::backward ? 8 : 4);
  const std::optional<std::int64_t> available = available_memory();
  const double limit =
      available ? std::min(2 * kGiB, 0.5 * static_cast<double>(*available)) : 2 * kGiB;
  if (bytes <= limit) return "";
  return fmt::format("standard {} {} left out: its scores take {:.1f} GiB of {:.1f} GiB allowed",
                     name_of(problem.pass), shape_label(problem), bytes / kGiB, limit / kGiB);
}

}  // namespace tessera::cli::bench
