#include "attention_case.hpp"

#include <utility>

namespace tessera::cli {

namespace {

HostTensor copy_of(const HostTensor& tensor) { return tensor.converted(tensor.dtype()); }

HostTensor poisoned(DType dtype, std::vector<std::int64_t> sizes) {
  HostTensor tensor(dtype, std::move(sizes));
  tensor.poison();
  return tensor;
}

}  // namespace

TensorView AttentionCase::tokens_view(const HostTensor& tensor) const {
  const TensorView view = tensor.view();
  return bshd && view.rank == 4 ? view.transposed(1, 2) : view;
}

Inputs AttentionCase::inputs() const {
  Inputs inputs;
  inputs.q = tokens_view(q);
  inputs.k = tokens_view(k);
  inputs.v = tokens_view(v);
  for (const OptionalInput& input : kOptionalInputs) {
    inputs.*input.view = (this->*input.tensor).view();
  }
  if (block_mask) inputs.block_mask = &block_mask_view;
  inputs.seed = seed;
  inputs.offset = offset;
  return inputs;
}

void AttentionCase::set_block_mask(BlockMask owned) {
  block_mask.emplace(std::move(owned));
  block_mask_view = block_mask->view();
}

std::vector<std::int64_t> AttentionCase::o_sizes() const {
  std::vector<std::int64_t> sizes = q.sizes();
  sizes.back() = v.sizes().back();
  return sizes;
}

std::vector<std::int64_t> AttentionCase::lse_sizes() const {
  if (packed()) return {q.size(1), q.size(0)};
  return bshd ? std::vector{q.size(0), q.size(2), q.size(1)}
              : std::vector{q.size(0), q.size(1), q.size(2)};
}

AttentionCase AttentionCase::converted(DType dtype) const {
  AttentionCase result;
  result.name = name;
  result.attention = attention;
  result.q = q.converted(dtype);
  result.k = k.converted(dtype);
  result.v = v.converted(dtype);
  result.bias = bias.converted(dtype);
  result.d_o = d_o.converted(dtype);
  result.d_lse = d_lse.converted(dtype);
  for (const OptionalInput& input : kOptionalInputs) {
    if (input.tensor != &AttentionCase::bias) {
      result.*input.tensor = copy_of(this->*input.tensor);
    }
  }
  if (block_mask) result.set_block_mask(*block_mask);
  result.seed = seed;
  result.offset = offset;
  result.bshd = bshd;
  return result;
}

Wanted all_gradients(const AttentionCase& attention_case) {
  Wanted wanted;
  wanted.d_bias = attention_case.bias.present();
  wanted.d_sink = attention_case.sink.present();
  return wanted;
}

Results allocate_results(const AttentionCase& attention_case, const Wanted& wanted) {
  const AttentionCase& c = attention_case;
  const DType dtype = c.q.dtype();
  Results results;
  results.o = poisoned(dtype, c.o_sizes());
  results.lse = poisoned(c.lse_dtype(), c.lse_sizes());
  if (!c.backward()) return results;
  if (wanted.d_q) results.d_q = poisoned(dtype, c.q.sizes());
  if (wanted.d_k) results.d_k = poisoned(dtype, c.k.sizes());
  if (wanted.d_v) results.d_v = poisoned(dtype, c.v.sizes());
  if (wanted.d_bias) results.d_bias = poisoned(c.bias.dtype(), c.bias.sizes());
  if (wanted.d_sink) results.d_sink = poisoned(DType::f32, c.sink.sizes());
  return results;
}

PlanOptions plan_options(const AttentionCase& attention_case, const Wanted& wanted,
                         const std::string& implementation, Executor* executor) {
  PlanOptions options;
  options.backward = attention_case.backward();
  options.bias_gradient = options.backward && wanted.d_bias;
  options.sink_gradient = options.backward && wanted.d_sink;
  options.implementation = implementation;
  options.executor = executor;
  return options;
}

}  // namespace tessera::cli
