// torch.ops.tessera: attention and its backward pass over the C interface. Schemas, and kernels for
// the CPU and CUDA; fake kernels, autograd and autocast are in tessera/_torch_ops.py. Only
// LibTorch's stable ABI is used, so one build serves every PyTorch from 2.10 on.
#include <tessera/tessera.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "plans.hpp"
#include "tensors.hpp"

namespace tessera_torch {
namespace {

/// Which gradients attention_backward gives, as bits; mirrored in tessera/_torch_ops.py.
enum Gradient : int64_t { kGradQ = 1, kGradK = 2, kGradV = 4, kGradBias = 8, kGradSinks = 16 };

/// Entries of block_mask_shape.
enum BlockMaskSize { kBatch, kHeads, kSeqQ, kSeqKv, kBlockQ, kBlockKv, kEntries, kPartial, kSizes };

/// The arguments that forward and backward share, as the schemas give them.
struct Arguments {
  Tensor q, k, v;
  OptionalTensor bias, mask, alibi_slopes, sinks, q_lens, kv_lens, cu_seqlens_q, cu_seqlens_k;
  OptionalTensor block_mask;
  std::vector<int64_t> block_mask_shape;
  OptionalTensor seed;
  bool causal;
  bool top_left;
  int64_t window_left;
  int64_t window_right;
  std::optional<double> scale;
  double softcap;
  double dropout_p;
  int64_t precision;
  bool deterministic;
  std::optional<std::string> plan;
  int64_t layer;
};

/// The arrays of a block mask lie one after another in one tensor, widest elements first.
/// tessera/_block_mask.py packs them in this order.
tessera_block_mask_view view_of_block_mask(const Tensor& packed,
                                           const std::vector<int64_t>& shape) {
  if (shape.size() != kSizes) {
    throw_invalid_argument("block_mask_shape: " + std::to_string(shape.size()) +
                           " numbers, expected " + std::to_string(kSizes));
  }
  tessera_block_mask_view view{};
  view.struct_size = sizeof view;
  view.batch = shape[kBatch];
  view.heads = shape[kHeads];
  view.seq_q = shape[kSeqQ];
  view.seq_kv = shape[kSeqKv];
  view.block_q = shape[kBlockQ];
  view.block_kv = shape[kBlockKv];
  view.entries = shape[kEntries];
  view.partial_blocks = shape[kPartial];
  if (view.block_q <= 0 || view.block_kv <= 0) {
    throw_invalid_argument("block_mask_shape: block sizes " + std::to_string(view.block_q) +
                           " and " + std::to_string(view.block_kv) +
                           ", expected positive multiples of 16");
  }
  view.q_blocks = (view.seq_q + view.block_q - 1) / view.block_q;
  view.kv_blocks = (view.seq_kv + view.block_kv - 1) / view.block_kv;
  const int64_t matrices = view.batch * view.heads;
  const int64_t words = view.partial_blocks * view.block_q * ((view.block_kv + 31) / 32);
  const int64_t longs = matrices * (view.q_blocks + view.kv_blocks) + 2 + view.entries;
  const int64_t bytes = 8 * longs + 4 * (3 * view.entries + words);
  if (const int64_t given = packed.numel() * static_cast<int64_t>(packed.element_size());
      given != bytes || !packed.is_contiguous()) {
    throw_invalid_argument("block_mask: " + std::to_string(given) + " bytes, expected " +
                           std::to_string(bytes) + " contiguous ones");
  }
  const auto* at64 = static_cast<const int64_t*>(packed.data_ptr());
  view.row_offsets = at64;
  at64 += matrices * view.q_blocks + 1;
  view.transposed_offsets = at64;
  at64 += matrices * view.kv_blocks + 1;
  view.transposed_entries = at64;
  at64 += view.entries;
  const auto* at32 = reinterpret_cast<const int32_t*>(at64);
  view.columns = at32;
  view.bits_index = at32 + view.entries;
  view.transposed_rows = at32 + 2 * view.entries;
  view.bits = reinterpret_cast<const uint32_t*>(at32 + 3 * view.entries);
  view.device_type = is_cuda(packed) ? TESSERA_CUDA : TESSERA_CPU;
  view.device_index = is_cuda(packed) ? packed.get_device_index() : 0;
  return view;
}

/// The arguments as the C interface takes them.
class Call {
 public:
  explicit Call(const Arguments& a)
      : q_(view_of(a.q, "q")),
        k_(view_of(a.k, "k")),
        v_(view_of(a.v, "v")),
        bias_(a.bias, "bias"),
        mask_(a.mask, "mask", "bool"),
        alibi_slopes_(a.alibi_slopes, "alibi"),
        sinks_(a.sinks, "sinks"),
        q_lens_(a.q_lens, "q_lens", kLengths),
        kv_lens_(a.kv_lens, "kv_lens", kLengths),
        cu_seqlens_q_(a.cu_seqlens_q, "cu_seqlens_q", kLengths),
        cu_seqlens_k_(a.cu_seqlens_k, "cu_seqlens_k", kLengths) {
    attention_.struct_size = sizeof attention_;
    attention_.causal = a.causal;
    attention_.alignment = a.top_left ? TESSERA_TOP_LEFT : TESSERA_BOTTOM_RIGHT;
    attention_.has_scale = a.scale.has_value();
    attention_.scale = a.scale.value_or(0.0);
    attention_.has_window = 1;
    attention_.window_left = a.window_left;
    attention_.window_right = a.window_right;
    attention_.softcap = a.softcap;
    attention_.dropout_p = a.dropout_p;
    attention_.precision = static_cast<int32_t>(a.precision);
    attention_.deterministic = a.deterministic;
    if (a.plan) attention_.adaptive_plan = find_adaptive_plan(*a.plan);
    attention_.layer = a.layer;

    inputs_.struct_size = sizeof inputs_;
    inputs_.q = &q_;
    inputs_.k = &k_;
    inputs_.v = &v_;
    inputs_.bias = bias_.get();
    inputs_.mask = mask_.get();
    inputs_.alibi_slopes = alibi_slopes_.get();
    inputs_.sink = sinks_.get();
    inputs_.q_lens = q_lens_.get();
    inputs_.kv_lens = kv_lens_.get();
    inputs_.cu_seqlens_q = cu_seqlens_q_.get();
    inputs_.cu_seqlens_k = cu_seqlens_k_.get();
    if (a.block_mask) {
      block_mask_ = view_of_block_mask(*a.block_mask, a.block_mask_shape);
      inputs_.block_mask = &block_mask_;
    }
    if (a.dropout_p > 0) inputs_.seed = read_seed(a.seed);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// Finds the plan of a pass and calls run(plan, tessera_run) with workspace, stream and threads.
  template <typename Run>
  void run(const Tensor& like, tessera_pass pass, int64_t gradients, Run&& run) const {
    tessera_plan_options options{};
    options.struct_size = sizeof options;
    options.passes = pass;
    options.bias_gradient = (gradients & kGradBias) != 0;
    options.sink_gradient = (gradients & kGradSinks) != 0;
    tessera_run how{};
    how.struct_size = sizeof how;
    if (is_cuda(like)) {
      how.stream = current_stream(like);
    } else {
      how.executor = torch_executor();
      options.executor = how.executor;
      options.threads = torch_threads();
    }
    const auto planned = find_plan(attention_, inputs_, options);
    std::optional<Tensor> workspace;
    if (planned->workspace_bytes() > 0) {
      how.workspace_bytes = planned->workspace_bytes();
      workspace = empty(like, aoti_torch_dtype_uint8(), static_cast<int64_t>(how.workspace_bytes));
      how.workspace = workspace->data_ptr();
    }
    check(run(planned->plan(), how));
  }

  const tessera_inputs& inputs() const { return inputs_; }

 private:
  static uint64_t read_seed(const OptionalTensor& seed) {
    if (!seed || is_cuda(*seed) || dtype_of(*seed) != aoti_torch_dtype_int64() ||
        seed->numel() != 1) {
      throw_invalid_argument(
          "seed: expected an int64 tensor of one element on the CPU, as dropout_p is above 0");
    }
    return static_cast<uint64_t>(*static_cast<const int64_t*>(seed->data_ptr()));
  }

  tessera_tensor q_, k_, v_;
  OptionalView bias_, mask_, alibi_slopes_, sinks_, q_lens_, kv_lens_, cu_seqlens_q_, cu_seqlens_k_;
  tessera_block_mask_view block_mask_{};
  tessera_attention attention_{};
  tessera_inputs inputs_{};
};

void require_rank(const Arguments& a) {
  const int64_t expected = a.cu_seqlens_q ? 3 : 4;
  for (const auto& [name, tensor] :
       {std::pair{"q", &a.q}, std::pair{"k", &a.k}, std::pair{"v", &a.v}}) {
    if (tensor->dim() != expected) {
      throw_invalid_argument(std::string(name) + ": rank " + std::to_string(tensor->dim()) +
                             ", expected " + std::to_string(expected));
    }
  }
}

Tensor empty_lse(const Tensor& q) {
  const bool packed = q.dim() == 3;
  const int64_t heads = q.size(1);
  const int64_t rows = q.size(packed ? 0 : 2);
  const std::array<int64_t, 3> sizes = {packed ? heads : q.size(0), packed ? rows : heads, rows};
  const int64_t row_stride = std::max<int64_t>(rows, 1);
  const std::array<int64_t, 3> strides = {
      packed ? row_stride : row_stride * std::max<int64_t>(heads, 1), packed ? 1 : row_stride, 1};
  const bool wide = dtype_of(q) == aoti_torch_dtype_float64();
  return empty(q, wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), packed ? 2 : 3,
               sizes.data(), strides.data());
}

std::tuple<Tensor, Tensor> forward(const Arguments& a) {
  require_rank(a);
  const Call call(a);
  Tensor o = empty_in_order_of(a.q, a.v.size(a.v.dim() - 1));
  Tensor lse = empty_lse(a.q);
  const tessera_tensor o_view = view_of(o, "o");
  const tessera_tensor lse_view = view_of(lse, "lse");
  tessera_outputs outputs{};
  outputs.struct_size = sizeof outputs;
  outputs.o = &o_view;
  outputs.lse = &lse_view;
  call.run(a.q, TESSERA_FORWARD, 0, [&](const tessera_plan* plan, const tessera_run& run) {
    return tessera_plan_forward(plan, &call.inputs(), &outputs, &run);
  });
  return {std::move(o), std::move(lse)};
}

/// One gradient that goes out, an empty tensor if nobody asks for it.
class OutgoingGradient {
 public:
  OutgoingGradient(bool wanted, const OptionalTensor& of, bool rows, const Tensor& q)
      : wanted_(wanted && of) {
    if (!wanted_) {
      tensor_ = empty(q, dtype_of(q), 0);
    } else if (rows) {
      tensor_ = empty_in_order_of(*of, of->size(of->dim() - 1));
    } else {
      tensor_ = torch::stable::contiguous(torch::stable::empty_like(*of));
    }
    if (wanted_) view_ = view_of(tensor_, "gradient");
  }
  const tessera_tensor* get() const { return wanted_ ? &view_ : nullptr; }
  Tensor take() { return std::move(tensor_); }

 private:
  bool wanted_;
  Tensor tensor_;
  tessera_tensor view_{};
};

/// An incoming gradient: whatever autograd made of it, with the unit stride that kernels need.
Tensor with_unit_stride(const Tensor& gradient) {
  const int64_t last = gradient.dim() - 1;
  if (gradient.size(last) <= 1 || gradient.stride(last) == 1) return gradient;
  return torch::stable::contiguous(gradient);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& d_o,
                                                            const OptionalTensor& d_lse,
                                                            const Tensor& o, const Tensor& lse,
                                                            const Arguments& a, int64_t gradients) {
  require_rank(a);
  const Call call(a);
  const Tensor d_o_rows = with_unit_stride(d_o);
  const OptionalTensor d_lse_rows =
      d_lse ? OptionalTensor(with_unit_stride(*d_lse)) : OptionalTensor();
  const tessera_tensor o_view = view_of(o, "o");
  const tessera_tensor lse_view = view_of(lse, "lse");
  const tessera_tensor d_o_view = view_of(d_o_rows, "d_o");
  const OptionalView d_lse_view(d_lse_rows, "d_lse");
  tessera_outputs outputs{};
  outputs.struct_size = sizeof outputs;
  outputs.o = &o_view;
  outputs.lse = &lse_view;
  tessera_output_gradients d_outputs{};
  d_outputs.struct_size = sizeof d_outputs;
  d_outputs.d_o = &d_o_view;
  d_outputs.d_lse = d_lse_view.get();

  OutgoingGradient d_q((gradients & kGradQ) != 0, a.q, true, a.q);
  OutgoingGradient d_k((gradients & kGradK) != 0, a.k, true, a.q);
  OutgoingGradient d_v((gradients & kGradV) != 0, a.v, true, a.q);
  OutgoingGradient d_bias((gradients & kGradBias) != 0, a.bias, false, a.q);
  OutgoingGradient d_sinks((gradients & kGradSinks) != 0, a.sinks, false, a.q);
  tessera_input_gradients d_inputs{};
  d_inputs.struct_size = sizeof d_inputs;
  d_inputs.d_q = d_q.get();
  d_inputs.d_k = d_k.get();
  d_inputs.d_v = d_v.get();
  d_inputs.d_bias = d_bias.get();
  d_inputs.d_sink = d_sinks.get();
  call.run(a.q, TESSERA_BACKWARD, gradients, [&](const tessera_plan* plan, const tessera_run& run) {
    return tessera_plan_backward(plan, &call.inputs(), &outputs, &d_outputs, &d_inputs, &run);
  });
  return {d_q.take(), d_k.take(), d_v.take(), d_bias.take(), d_sinks.take()};
}

// The schemas' shared arguments, once for the schemas and once for C++.
#define TESSERA_TENSORS_SCHEMA                                                             \
  "Tensor q, Tensor k, Tensor v, Tensor? bias=None, Tensor? mask=None, "                   \
  "Tensor? alibi=None, Tensor? sinks=None, Tensor? q_lens=None, Tensor? kv_lens=None, "    \
  "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? block_mask=None, "        \
  "int[] block_mask_shape=[], Tensor? seed=None, bool causal=False, bool top_left=False, " \
  "int window_left=-1, int window_right=-1, float? scale=None, float softcap=0.0, "        \
  "float dropout_p=0.0, int precision=0, bool deterministic=False, str? plan=None, "       \
  "int layer=0"

#define TESSERA_PARAMETERS                                                                      \
  Tensor q, Tensor k, Tensor v, OptionalTensor bias, OptionalTensor mask, OptionalTensor alibi, \
      OptionalTensor sinks, OptionalTensor q_lens, OptionalTensor kv_lens,                      \
      OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, OptionalTensor block_mask,      \
      std::vector<int64_t> block_mask_shape, OptionalTensor seed, bool causal, bool top_left,   \
      int64_t window_left, int64_t window_right, std::optional<double> scale, double softcap,   \
      double dropout_p, int64_t precision, bool deterministic, std::optional<std::string> plan, \
      int64_t layer

#define TESSERA_ARGUMENTS                                                                       \
  Arguments {                                                                                   \
    q, k, v, bias, mask, alibi, sinks, q_lens, kv_lens, cu_seqlens_q, cu_seqlens_k, block_mask, \
        block_mask_shape, seed, causal, top_left, window_left, window_right, scale, softcap,    \
        dropout_p, precision, deterministic, plan, layer                                        \
  }

std::tuple<Tensor, Tensor> attention(TESSERA_PARAMETERS) { return forward(TESSERA_ARGUMENTS); }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor d_o, OptionalTensor d_lse, Tensor o, Tensor lse, int64_t gradients, TESSERA_PARAMETERS) {
  return backward(d_o, d_lse, o, lse, TESSERA_ARGUMENTS, gradients);
}

}  // namespace
}  // namespace tessera_torch

STABLE_TORCH_LIBRARY(tessera, library) {
  library.def("attention(" TESSERA_TENSORS_SCHEMA ") -> (Tensor o, Tensor lse)");
  library.def(
      "attention_backward(Tensor d_o, Tensor? d_lse, Tensor o, Tensor lse, int "
      "gradients, " TESSERA_TENSORS_SCHEMA
      ") -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_bias, Tensor d_sinks)");
}

STABLE_TORCH_LIBRARY_IMPL(tessera, CPU, library) {
  library.impl("attention", TORCH_BOX(&tessera_torch::attention));
  library.impl("attention_backward", TORCH_BOX(&tessera_torch::attention_backward));
}

STABLE_TORCH_LIBRARY_IMPL(tessera, CUDA, library) {
  library.impl("attention", TORCH_BOX(&tessera_torch::attention));
  library.impl("attention_backward", TORCH_BOX(&tessera_torch::attention_backward));
}
