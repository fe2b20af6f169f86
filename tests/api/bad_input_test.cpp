// Every kind of bad input: a status of the right code, one line that names the argument, its value
// and what was expected, and outputs that nobody has touched.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A valid problem with everything a test may spoil.
struct Call {
  Case c;
  Workload w;
  Results results;
  Attention attention;
  Inputs inputs;
  Outputs outputs;
  OutputGradients d_outputs;
  InputGradients d_inputs;

  explicit Call(const Case& valid = {}) : c(valid) {
    w = make_workload(c);
    results = make_results(c);
    attention = c.attention;
    inputs = w.inputs();
    outputs = results.outputs();
    d_outputs = {w.d_o.view(), w.d_lse.view()};
    d_inputs = results.gradients();
  }

  bool untouched() const {
    for (const Tensor* t : {&results.o, &results.lse, &results.d_q, &results.d_k, &results.d_v,
                            &results.d_bias, &results.d_sink}) {
      if (!t->all_poison()) return false;
    }
    return true;
  }
};

/// Says in one line: the argument, its value, and that something else was expected.
void expect_message(const Status& status, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), StatusCode::invalid_argument) << status.message();
  for (const std::string& part : parts) {
    EXPECT_NE(status.message().find(part), std::string::npos)
        << "'" << part << "' in: " << status.message();
  }
  EXPECT_NE(status.message().find("expected"), std::string::npos) << status.message();
  EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
}

/// Forward, and backward too, must refuse the call with such a message and write nothing.
void expect_refused(Call call, const std::vector<std::string>& parts) {
  expect_message(attention_forward(call.attention, call.inputs, call.outputs), parts);
  expect_message(
      attention_backward(call.attention, call.inputs, call.outputs, call.d_outputs, call.d_inputs),
      parts);
  EXPECT_TRUE(call.untouched()) << parts.front();
}

/// For what only the forward pass writes: the backward pass may read it from anywhere.
void expect_forward_refused(Call call, const std::vector<std::string>& parts) {
  expect_message(attention_forward(call.attention, call.inputs, call.outputs), parts);
  EXPECT_TRUE(call.untouched()) << parts.front();
}

void expect_backward_refused(Call call, const std::vector<std::string>& parts) {
  expect_message(
      attention_backward(call.attention, call.inputs, call.outputs, call.d_outputs, call.d_inputs),
      parts);
  EXPECT_TRUE(call.untouched()) << parts.front();
}

Call with(const std::function<void(Call&)>& spoil, const Case& valid = {}) {
  Call call(valid);
  spoil(call);
  return call;
}

TEST(BadInput, TheValidCallPasses) {
  Call call;
  EXPECT_TRUE(attention_forward(call.attention, call.inputs, call.outputs).ok());
  EXPECT_TRUE(
      attention_backward(call.attention, call.inputs, call.outputs, call.d_outputs, call.d_inputs)
          .ok());
}

TEST(BadInput, ShapesThatDoNotFit) {
  expect_refused(with([](Call& x) { x.inputs.k.size[3] = 63; }), {"k", "63", "64"});
  expect_refused(with([](Call& x) { x.inputs.k.size[0] = 1; }), {"k", "[1,"});
  expect_refused(with([](Call& x) { x.inputs.v.size[2] = 60; }), {"v", "60", "64"});
  expect_refused(with([](Call& x) { x.inputs.v.size[1] = 1; }), {"v", "1"});
  expect_refused(with([](Call& x) { x.inputs.q.rank = 3; }), {"q", "rank 3", "4"});
  expect_refused(with([](Call& x) { x.inputs.v.rank = 0; }), {"v", "rank 0", "4"});
  expect_refused(with([](Call& x) { x.outputs.o.size[2] = 65; }), {"o", "65", "64"});
  expect_refused(with([](Call& x) { x.outputs.lse.size[1] = 3; }), {"lse", "3", "2"});
  expect_refused(with([](Call& x) { x.outputs.o = {}; }), {"o", "absent"});
  expect_refused(with([](Call& x) { x.inputs.q.size[2] = -1; }), {"q", "-1"});
  expect_backward_refused(with([](Call& x) { x.d_outputs.d_o.size[3] = 32; }), {"d_o", "32", "64"});
  expect_backward_refused(with([](Call& x) { x.d_outputs.d_o = {}; }), {"d_o", "absent"});
  expect_backward_refused(with([](Call& x) { x.outputs.lse = {}; }), {"lse", "absent"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_q.size[2] = 1; }), {"d_q", "1", "64"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_k.size[1] = 1; }), {"d_k", "1", "2"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_v.size[3] = 1; }), {"d_v", "1", "64"});
}

TEST(BadInput, ShapesOfOptionalInputs) {
  Case c;
  c.bias = Extents{};
  c.mask = Extents{};
  c.alibi_rank = 1;
  c.sink = true;
  c.q_lens = {64, 64};
  c.kv_lens = {64, 64};
  c.d_lse = true;
  expect_refused(with([](Call& x) { x.inputs.bias.size[2] = 63; }, c), {"bias", "63", "64"});
  expect_refused(with([](Call& x) { x.inputs.bias.size[3] = 1; }, c), {"bias", "64"});
  expect_refused(with([](Call& x) { x.inputs.mask.size[1] = 3; }, c), {"mask", "3", "2"});
  expect_refused(with([](Call& x) { x.inputs.alibi_slopes.size[0] = 5; }, c),
                 {"alibi_slopes", "5", "2"});
  expect_refused(with([](Call& x) { x.inputs.sink.size[0] = 1; }, c), {"sink", "1", "2"});
  expect_refused(with([](Call& x) { x.inputs.q_lens.size[0] = 3; }, c), {"q_lens", "3", "2"});
  expect_refused(with([](Call& x) { x.inputs.kv_lens.size[0] = 1; }, c), {"kv_lens", "1", "2"});
  expect_backward_refused(with([](Call& x) { x.d_outputs.d_lse.size[2] = 9; }, c),
                          {"d_lse", "9", "64"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_bias.size[0] = 1; }, c),
                          {"d_bias", "1", "2"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_sink.size[0] = 4; }, c),
                          {"d_sink", "4", "2"});
}

TEST(BadInput, HeadsAndHeadDims) {
  Case c;
  c.heads_q = 6;
  c.heads_kv = 4;
  Call heads(c);
  expect_refused(heads, {"q", "6", "4", "multiple"});
  c.heads_q = c.heads_kv = 1;
  c.seq_q = c.seq_kv = 4;
  c.head_dim = c.head_dim_v = 513;
  expect_refused(Call(c), {"513", "512"});
  c.head_dim = c.head_dim_v = 0;
  expect_refused(Call(c), {"q", "head dim: 0"});
  c.head_dim = c.head_dim_v = 8;
  c.heads_q = 0;
  expect_refused(Call(c), {"q", "heads: 0"});
}

TEST(BadInput, Strides) {
  expect_refused(with([](Call& x) { x.inputs.q.stride[3] = 2; }), {"q", "stride 2", "1"});
  expect_refused(with([](Call& x) { x.inputs.v.stride[3] = 0; }), {"v", "stride 0", "1"});
  expect_forward_refused(with([](Call& x) { x.outputs.o.stride[2] = 0; }), {"o", "stride"});
  expect_forward_refused(with([](Call& x) { x.outputs.o.stride[2] = 1; }), {"o", "stride"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_k.stride[1] = 0; }), {"d_k", "stride"});
}

TEST(BadInput, Dtypes) {
  expect_refused(with([](Call& x) { x.inputs.k.dtype = DType::f16; }), {"k", "f16", "f32"});
  expect_refused(with([](Call& x) { x.inputs.q.dtype = DType::i32; }), {"q", "i32"});
  expect_refused(with([](Call& x) { x.outputs.o.dtype = DType::bf16; }), {"o", "bf16", "f32"});
  expect_refused(with([](Call& x) { x.outputs.lse.dtype = DType::f64; }), {"lse", "f64", "f32"});
  expect_refused(with([](Call& x) { x.inputs.q.dtype = static_cast<DType>(77); }), {"q", "77"});
  Case c;
  c.mask = Extents{};
  c.kv_lens = {1, 2};
  c.sink = true;
  expect_refused(with([](Call& x) { x.inputs.mask.dtype = DType::f32; }, c),
                 {"mask", "f32", "bool"});
  expect_refused(with([](Call& x) { x.inputs.kv_lens.dtype = DType::f32; }, c),
                 {"kv_lens", "f32", "i32"});
  expect_refused(with([](Call& x) { x.inputs.sink.dtype = DType::bf16; }, c),
                 {"sink", "bf16", "f32"});
  Case biased;
  biased.bias = Extents{};
  expect_refused(with([](Call& x) { x.inputs.bias.dtype = DType::f16; }, biased),
                 {"bias", "f16", "f32"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_bias.dtype = DType::f16; }, biased),
                          {"d_bias", "f16", "f32"});
}

TEST(BadInput, Devices) {
  const auto cuda = [](TensorView& view) { view.device = {DeviceType::cuda, 0}; };
  expect_refused(with([&](Call& x) { cuda(x.inputs.k); }), {"k", "cuda", "cpu"});
  expect_refused(with([&](Call& x) { cuda(x.outputs.o); }), {"o", "cuda", "cpu"});
  expect_backward_refused(with([&](Call& x) { cuda(x.d_inputs.d_v); }), {"d_v", "cuda", "cpu"});
}

TEST(BadInput, DevicesThatDoNotExist) {
  for (const Device device : {Device{static_cast<DeviceType>(9), 0}, Device{DeviceType::cpu, 3},
                              Device{DeviceType::cpu, -1}}) {
    Call call;
    for (TensorView* view :
         {&call.inputs.q, &call.inputs.k, &call.inputs.v, &call.outputs.o, &call.outputs.lse,
          &call.d_outputs.d_o, &call.d_inputs.d_q, &call.d_inputs.d_k, &call.d_inputs.d_v}) {
      view->device = device;
    }
    expect_refused(call, {"q", "device"});
  }
}

TEST(BadInput, CudaWithoutCuda) {
  bool has_cuda = false;
  for (const Implementation& row : implementations()) {
    has_cuda = has_cuda || (row.device == DeviceType::cuda && row.available);
  }
  if (has_cuda) GTEST_SKIP() << "this machine runs CUDA rows";
  Call call;
  for (TensorView* view :
       {&call.inputs.q, &call.inputs.k, &call.inputs.v, &call.outputs.o, &call.outputs.lse}) {
    view->device = {DeviceType::cuda, 0};
  }
  const Status status = attention_forward(call.attention, call.inputs, call.outputs);
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_NE(status.message().find("cuda"), std::string::npos) << status.message();
  EXPECT_TRUE(call.untouched());
}

TEST(BadInput, Numbers) {
  expect_refused(with([](Call& x) { x.attention.scale = kNan; }), {"scale", "nan"});
  expect_refused(with([](Call& x) { x.attention.scale = kInfinity; }), {"scale", "inf"});
  for (double p : {1.0, -0.1, 1.5, kNan}) {
    expect_refused(with([p](Call& x) { x.attention.dropout_p = p; }), {"dropout_p", "[0, 1)"});
  }
  for (double cap : {-1.0, kNan, kInfinity}) {
    expect_refused(with([cap](Call& x) { x.attention.softcap = cap; }), {"softcap"});
  }
  expect_refused(with([](Call& x) { x.attention.window.left = -2; }), {"window.left", "-2"});
  expect_refused(with([](Call& x) { x.attention.window.right = -7; }), {"window.right", "-7"});
  expect_refused(with([](Call& x) { x.attention.alignment = static_cast<Alignment>(9); }),
                 {"alignment", "9"});
  expect_refused(with([](Call& x) { x.attention.precision = static_cast<Precision>(9); }),
                 {"precision", "9"});
}

TEST(BadInput, Quantization) {
  const auto quantised = [](const std::function<void(Quantization&)>& change) {
    return with([&](Call& x) {
      x.attention.precision = Precision::sage8;
      change(x.attention.quantization);
    });
  };
  expect_refused(
      quantised([](Quantization& q) { q.granularity = static_cast<ScaleGranularity>(6); }),
      {"quantization.granularity", "6"});
  expect_refused(quantised([](Quantization& q) { q.smooth_q = static_cast<SmoothQ>(4); }),
                 {"quantization.smooth_q", "4"});
  expect_refused(quantised([](Quantization& q) { q.smooth_k = static_cast<Smoothing>(3); }),
                 {"quantization.smooth_k", "3"});
  expect_refused(quantised([](Quantization& q) { q.smooth_v = static_cast<Smoothing>(3); }),
                 {"quantization.smooth_v", "3"});
  expect_refused(quantised([](Quantization& q) { q.pv = static_cast<PvFormat>(3); }),
                 {"quantization.pv", "3"});
  expect_refused(with([](Call& x) { x.attention.precision = Precision::adaptive; }),
                 {"adaptive_plan", "absent"});
}

TEST(BadInput, RowsThatDoNotQuantiseSaySo) {
  Call call;
  call.attention.precision = Precision::sage8;
  PlanOptions options;
  options.implementation = "cpu_portable";
  const Status status = attention_forward(call.attention, call.inputs, call.outputs, options);
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_NE(status.message().find("sage8"), std::string::npos) << status.message();
  EXPECT_TRUE(call.untouched());
}

Case packed_case() {
  Case c;
  c.cu_seqlens_q = {0, 10, 30};
  c.cu_seqlens_k = {0, 20, 50};
  c.seq_q = 32;
  c.seq_kv = 50;
  return c;
}

/// Puts `value` at place `at` of an i32 tensor of the workload.
std::function<void(Call&)> put(Tensor Workload::*member, std::int64_t at, double value) {
  return [=](Call& x) { (x.w.*member).set(at, value); };
}

TEST(BadInput, CuSeqlens) {
  const Case c = packed_case();
  expect_refused(with(put(&Workload::cu_seqlens_q, 0, 1), c), {"cu_seqlens_q[0]", "1", "0"});
  expect_refused(with(put(&Workload::cu_seqlens_q, 1, 31), c), {"cu_seqlens_q[2]", "30", "31"});
  expect_refused(with(put(&Workload::cu_seqlens_k, 1, -4), c), {"cu_seqlens_k[1]", "-4"});
  expect_refused(with(put(&Workload::cu_seqlens_q, 2, 33), c), {"cu_seqlens_q[2]", "33", "32"});
  expect_refused(with(put(&Workload::cu_seqlens_k, 2, 2147483647), c), {"cu_seqlens_k[2]", "50"});
  expect_refused(with([](Call& x) { x.inputs.cu_seqlens_k = {}; }, c), {"cu_seqlens_k", "absent"});
  expect_refused(with([](Call& x) { x.inputs.cu_seqlens_q = {}; }, c), {"cu_seqlens_q", "absent"});
  expect_refused(with([](Call& x) { x.inputs.cu_seqlens_k.size[0] = 2; }, c),
                 {"cu_seqlens_k", "2", "3"});
  Case masked = c;
  masked.mask = Extents{};
  expect_refused(with([](Call& x) { x.inputs.mask.size[3] = 29; }, masked), {"mask", "29", "30"});
  expect_refused(with([](Call& x) { x.inputs.mask.size[2] = 19; }, masked), {"mask", "19", "20"});
}

TEST(BadInput, UsedLengths) {
  Case c;
  c.q_lens = {64, 3};
  c.kv_lens = {0, 64};
  expect_refused(with(put(&Workload::q_lens, 1, 65), c), {"q_lens[1]", "65", "64"});
  expect_refused(with(put(&Workload::kv_lens, 0, -1), c), {"kv_lens[0]", "-1", "0"});
  Case packed = packed_case();
  packed.kv_lens = {20, 30};
  expect_refused(with(put(&Workload::kv_lens, 0, 21), packed), {"kv_lens[0]", "21", "20"});
}

TEST(BadInput, BlockMasks) {
  Case c;
  c.blocks = BlockPattern{16, 32, true, true, 0.5, 0.5};
  const auto spoil = [&c](const std::function<void(BlockMaskView&)>& change) {
    Call call(c);
    change(call.w.block_view);
    call.inputs = call.w.inputs();
    return call;
  };
  const auto refused = [&](const std::function<void(BlockMaskView&)>& change,
                           const std::vector<std::string>& parts) {
    Call call = spoil(change);
    call.inputs.block_mask = &call.w.block_view;  // the call's own copy
    expect_message(attention_forward(call.attention, call.inputs, call.outputs), parts);
    expect_message(attention_backward(call.attention, call.inputs, call.outputs, call.d_outputs,
                                      call.d_inputs),
                   parts);
    EXPECT_TRUE(call.untouched());
  };
  refused([](BlockMaskView& m) { m.batch = 3; }, {"block_mask", "3"});
  refused([](BlockMaskView& m) { m.heads = 5; }, {"block_mask", "5"});
  refused([](BlockMaskView& m) { m.seq_q = 63; }, {"block_mask", "63", "64"});
  refused([](BlockMaskView& m) { m.seq_kv = 128; }, {"block_mask", "128", "64"});
  refused([](BlockMaskView& m) { m.block_q = 24; }, {"block_mask", "24", "16"});
  refused([](BlockMaskView& m) { m.block_kv = 0; }, {"block_mask", "0", "16"});
  refused([](BlockMaskView& m) { m.q_blocks = 3; }, {"block_mask", "3", "4"});
  refused([](BlockMaskView& m) { m.columns = nullptr; }, {"columns", "null"});
  std::vector<std::int32_t> columns;
  refused(
      [&columns](BlockMaskView& m) {
        columns.assign(m.columns, m.columns + m.entries);
        columns.back() = 1000;
        m.columns = columns.data();
      },
      {"columns", "1000"});
  std::vector<std::int64_t> offsets;
  refused(
      [&offsets](BlockMaskView& m) {
        offsets.assign(m.row_offsets, m.row_offsets + m.batch * m.heads * m.q_blocks + 1);
        offsets[1] = -5;
        m.row_offsets = offsets.data();
      },
      {"row_offsets", "-5"});
}

TEST(BadInput, NullPointers) {
  expect_refused(with([](Call& x) { x.inputs.q.data = nullptr; }), {"q", "null"});
  expect_refused(with([](Call& x) { x.inputs.v.data = nullptr; }), {"v", "null"});
  expect_refused(with([](Call& x) { x.outputs.o.data = nullptr; }), {"o", "null"});
  expect_refused(with([](Call& x) { x.outputs.lse.data = nullptr; }), {"lse", "null"});
  expect_backward_refused(with([](Call& x) { x.d_outputs.d_o.data = nullptr; }), {"d_o", "null"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_q.data = nullptr; }), {"d_q", "null"});
  Case c;
  c.kv_lens = {1, 1};
  c.bias = Extents{};
  expect_refused(with([](Call& x) { x.inputs.kv_lens.data = nullptr; }, c), {"kv_lens", "null"});
  expect_refused(with([](Call& x) { x.inputs.bias.data = nullptr; }, c), {"bias", "null"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_bias.data = nullptr; }, c),
                          {"d_bias", "null"});
}

TEST(BadInput, OverlappingOutputs) {
  expect_forward_refused(with([](Call& x) { x.outputs.o.data = x.inputs.q.data; }),
                         {"o", "overlaps q"});
  expect_forward_refused(with([](Call& x) { x.outputs.lse.data = x.outputs.o.data; }),
                         {"o", "overlaps lse"});
  expect_forward_refused(
      with([](Call& x) { x.outputs.o.data = static_cast<char*>(x.inputs.v.data) + 4 * 64; }),
      {"o", "overlaps v"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_k.data = x.d_inputs.d_v.data; }),
                          {"d_k", "overlaps d_v"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_q.data = x.inputs.q.data; }),
                          {"d_q", "overlaps q"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_q.data = x.d_outputs.d_o.data; }),
                          {"d_q", "overlaps d_o"});
  expect_backward_refused(with([](Call& x) { x.d_inputs.d_v.data = x.outputs.o.data; }),
                          {"d_v", "overlaps o"});
}

TEST(BadInput, SizesWhoseProductOverflows) {
  expect_refused(with([](Call& x) {
                   for (TensorView* view : {&x.inputs.q, &x.inputs.k, &x.inputs.v, &x.outputs.o}) {
                     view->size = {std::int64_t{1} << 31, std::int64_t{1} << 31, 1 << 30, 64};
                   }
                 }),
                 {"q", "64 bits"});
  expect_refused(with([](Call& x) { x.inputs.q.stride[0] = std::int64_t{1} << 62; }),
                 {"q", "64 bits"});
  expect_refused(
      with([](Call& x) { x.inputs.k.stride[2] = std::numeric_limits<std::int64_t>::min(); }),
      {"k", "64 bits"});
  expect_refused(with([](Call& x) {
                   for (TensorView* view : {&x.inputs.q, &x.inputs.k, &x.inputs.v}) {
                     view->size = {1, 1, std::int64_t{1} << 31, 64};
                   }
                 }),
                 {"sequence length", "2147483648", "2147483647"});
}

}  // namespace
}  // namespace tessera::test
