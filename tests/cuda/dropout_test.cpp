// CPU and GPU drop the same elements, bit for bit, whatever the seed and offset.
#include <algorithm>

#include "cuda/gpu_call.hpp"

namespace tessera::test {
namespace {

using Dropout = Gpu;

struct Stream {
  std::uint64_t seed, offset;
};
constexpr Stream kStreams[] = {
    {0, 0}, {1, 0}, {0xffffffffffffffffu, 0xffffffffffffffffu}, {0x123456789abcdef0u, 1u << 31}};

/// With V the identity o[b, h, i, j] is zero exactly where (i, j) was dropped, and with d_o the
/// identity d_v[b, h, j, i] is.
Case identity_case(DType dtype) {
  Case c;
  c.dtype = dtype;
  c.batch = 3;
  c.heads_q = c.heads_kv = 5;
  c.seq_q = 256;
  c.seq_kv = 256;
  c.head_dim = 64;
  c.head_dim_v = 256;
  c.attention.dropout_p = 0.37;
  return c;
}

void make_identity(Tensor& t) {
  t.fill(0);
  for (std::int64_t b = 0; b < t.size(0); ++b) {
    for (std::int64_t h = 0; h < t.size(1); ++h) {
      for (std::int64_t i = 0; i < t.size(2); ++i) t.put({b, h, i, i}, 1);
    }
  }
}

std::vector<bool> zeros(const Tensor& t) {
  std::vector<bool> zero(static_cast<std::size_t>(t.count()));
  for (std::size_t x = 0; x < zero.size(); ++x) {
    zero[x] = t.get(static_cast<std::int64_t>(x)) == 0;
  }
  return zero;
}

TEST_F(Dropout, IsTheCpusBitForBit) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Case c = identity_case(dtype);
    Workload w = make_workload(c);
    make_identity(w.v);
    make_identity(w.d_o);
    for (const Stream& stream : kStreams) {
      const Results cpu = make_results(c);
      Inputs inputs = w.inputs();
      inputs.seed = stream.seed;
      inputs.offset = stream.offset;
      PlanOptions options;
      options.implementation = "cpu_portable";
      ASSERT_TRUE(attention_forward(c.attention, inputs, cpu.outputs(), options).ok());
      ASSERT_TRUE(attention_backward(c.attention, inputs, cpu.outputs(), {w.d_o.view(), {}},
                                     cpu.gradients(), options)
                      .ok());
      const std::vector<bool> dropped = zeros(cpu.o);
      EXPECT_NEAR(static_cast<double>(std::count(dropped.begin(), dropped.end(), true)),
                  c.attention.dropout_p * static_cast<double>(dropped.size()),
                  5 * std::sqrt(static_cast<double>(dropped.size())));
      for (const std::string& row : gpu_rows(c)) {
        GpuCall call(c, w, row);
        call.inputs.seed = stream.seed;
        call.inputs.offset = stream.offset;
        const Status status = call.run();
        ASSERT_TRUE(status.ok()) << row << ": " << status.message();
        call.bring_back();
        EXPECT_EQ(zeros(call.results.o), dropped) << row << " seed " << stream.seed;
        EXPECT_EQ(zeros(call.results.d_v), zeros(cpu.d_v)) << row << " seed " << stream.seed;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::test
