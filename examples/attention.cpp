#include <cstdio>
#include <tessera/attention.hpp>
#include <vector>

int main() {
  // Batch 1, 8 query heads, 2 key/value heads (GQA), 256 tokens, head_dim 64.
  std::vector<float> q(8 * 256 * 64), k(2 * 256 * 64), v(2 * 256 * 64), o(8 * 256 * 64);
  tessera::Inputs inputs;
  inputs.q = tessera::TensorView::contiguous(q.data(), tessera::DType::f32, {1, 8, 256, 64});
  inputs.k = tessera::TensorView::contiguous(k.data(), tessera::DType::f32, {1, 2, 256, 64});
  inputs.v = tessera::TensorView::contiguous(v.data(), tessera::DType::f32, {1, 2, 256, 64});
  tessera::Outputs outputs;
  outputs.o = tessera::TensorView::contiguous(o.data(), tessera::DType::f32, {1, 8, 256, 64});
  tessera::Attention attention;
  attention.causal = true;
  const tessera::Status status = tessera::attention_forward(attention, inputs, outputs);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return static_cast<int>(status.code());
}
