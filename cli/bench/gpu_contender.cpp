#include "bench/gpu_contender.hpp"

#include "bench/tune.hpp"
#include "error.hpp"

namespace tessera::cli::bench {
namespace {

std::optional<device::BlockMaskCopy> copy_of(const BlockMask* mask, Device device) {
  if (mask == nullptr) return std::nullopt;
  return require(device::BlockMaskCopy::make(mask->view(), device));
}

PlanOptions options_of(const Case& problem, const Variant& variant) {
  PlanOptions options;
  options.forward = problem.pass == Pass::forward;
  options.backward = problem.pass == Pass::backward;
  if (variant.impl != "auto") options.implementation = variant.impl;
  return options;
}

Plan make_plan(const Case& problem, const Variant& variant, const Inputs& inputs) {
  const ForcedConfig forced(variant.config);
  return require(
      Plan::create(to_attention(problem, variant.precision), inputs, options_of(problem, variant)));
}

}  // namespace

GpuTensors::GpuTensors(const Case& p, const NormalPool& pool, Device device, std::size_t set) {
  const auto make = [&](device::Buffer& buffer, DType dtype,
                        std::initializer_list<std::int64_t> sizes) {
    TensorView view = TensorView::contiguous(nullptr, dtype, sizes, device);
    std::size_t bytes = static_cast<std::size_t>(size_of(dtype));
    for (std::int64_t size : sizes) bytes *= static_cast<std::size_t>(size);
    buffer = require(device::Buffer::allocate(bytes, device));
    view.data = buffer.data();
    return view;
  };
  constexpr std::size_t kInputs = 4;
  std::size_t start = kInputs * set;
  const auto random = [&](device::Buffer& buffer, std::initializer_list<std::int64_t> sizes) {
    const TensorView view = make(buffer, p.dtype, sizes);
    require(pool.fill(buffer, start++));
    return view;
  };
  inputs.q = random(q, {p.batch, p.heads_q, p.seq_q, p.head_dim});
  inputs.k = random(k, {p.batch, p.heads_kv, p.seq_kv, p.head_dim});
  inputs.v = random(v, {p.batch, p.heads_kv, p.seq_kv, p.head_dim_v});
  outputs.o = make(o, p.dtype, {p.batch, p.heads_q, p.seq_q, p.head_dim_v});
  if (p.pass == Pass::forward) return;
  outputs.lse = make(lse, DType::f32, {p.batch, p.heads_q, p.seq_q});
  d_outputs.d_o = random(d_o, {p.batch, p.heads_q, p.seq_q, p.head_dim_v});
  d_inputs.d_q = make(d_q, p.dtype, {p.batch, p.heads_q, p.seq_q, p.head_dim});
  d_inputs.d_k = make(d_k, p.dtype, {p.batch, p.heads_kv, p.seq_kv, p.head_dim});
  d_inputs.d_v = make(d_v, p.dtype, {p.batch, p.heads_kv, p.seq_kv, p.head_dim_v});
}

GpuContender::GpuContender(const Case& problem, const Variant& variant, const BlockMask* mask,
                           const GpuTensors& like, const device::Stream& stream)
    : pass_(problem.pass),
      stream_(stream),
      mask_(copy_of(mask, stream.device())),
      plan_(make_plan(problem, variant, with_mask(like.inputs))),
      workspace_(require(device::Buffer::allocate(
          plan_.forward_workspace_bytes() + plan_.backward_workspace_bytes(), stream.device()))) {}

Inputs GpuContender::with_mask(const Inputs& inputs) const {
  Inputs masked = inputs;
  if (mask_) masked.block_mask = &mask_->view();
  return masked;
}

void GpuContender::enqueue(const GpuTensors& t) const {
  const Run run{workspace_.data(), workspace_.bytes(), stream_.handle(), nullptr};
  const Inputs inputs = with_mask(t.inputs);
  require(pass_ == Pass::forward ? plan_.forward(inputs, t.outputs, run)
                                 : plan_.backward(inputs, t.outputs, t.d_outputs, t.d_inputs, run));
}

std::string GpuContender::name() const {
  return pass_ == Pass::forward ? plan_.forward_implementation() : plan_.backward_implementation();
}

}  // namespace tessera::cli::bench
