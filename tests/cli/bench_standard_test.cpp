// The peer computes what it is compared with, and the ceilings are rates.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/blas.hpp"
#include "bench/ceiling.hpp"
#include "bench/contender.hpp"
#include "bench/memory_probe.hpp"
#include "bench/row_math.hpp"
#include "bench/standard.hpp"

namespace tessera::cli::bench {
namespace {

void expect_near(const HostTensor& actual, const HostTensor& expected, double tolerance) {
  double worst = 0;
  for (std::int64_t i = 0; i < expected.elements(); ++i) {
    worst = std::max(worst, std::abs(actual.at(i) - expected.at(i)));
  }
  EXPECT_LE(worst, tolerance);
}

// Gradients are sums of at most a hundred terms of order one here.
double tolerance_of(DType dtype) {
  return 100 * (dtype == DType::f32 ? 0x1p-20 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8);
}

TEST(Standard, AgreesWithTheReference) {
  if (!have_blas()) GTEST_SKIP() << "no BLAS in this build";
  for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (bool causal : {false, true}) {
      Case p;
      p.pass = Pass::backward;
      p.dtype = dtype;
      p.batch = 2;
      p.heads_q = 4;
      p.heads_kv = 2;
      p.seq_q = 70;
      p.seq_kv = 53;  // causal: the first rows see nothing
      p.head_dim = 24;
      p.head_dim_v = 40;
      p.causal = causal;
      Tensors expected(p);
      Variant reference;
      reference.impl = "reference";
      run_forward(p, nullptr, expected);
      make_contender(p, reference, nullptr, expected)->run();

      Tensors actual(p);
      run_forward(p, nullptr, actual);
      StandardAttention standard(p, 2);
      standard.backward(actual.inputs(), actual.outputs(), actual.d_outputs(), actual.d_inputs());
      expect_near(actual.d_q, expected.d_q, tolerance_of(dtype));
      expect_near(actual.d_k, expected.d_k, tolerance_of(dtype));
      expect_near(actual.d_v, expected.d_v, tolerance_of(dtype));
      actual.o.poison();
      standard.forward(actual.inputs(), actual.outputs());
      expect_near(actual.o, expected.o, tolerance_of(dtype));
    }
  }
}

TEST(Standard, SoftmaxSumsToOneAtAnyLength) {
  for (std::int64_t size : {1, 3, 8, 15, 16, 17, 100}) {
    std::vector<float> row(size + 1, 50);
    for (std::int64_t j = 0; j < size; ++j) row[j] = static_cast<float>(std::sin(j) * 30);
    const std::vector<float> scores = row;
    const std::int64_t begin = size > 8 ? 3 : 0;
    softmax_row(row.data(), size, begin, size);
    double sum = 0;
    double exact_sum = 0;
    for (std::int64_t j = begin; j < size; ++j) exact_sum += std::exp(double{scores[j]});
    for (std::int64_t j = 0; j < size; ++j) {
      const double exact = j < begin ? 0 : std::exp(double{scores[j]}) / exact_sum;
      EXPECT_NEAR(row[j], exact, 1e-5);
      sum += row[j];
    }
    EXPECT_NEAR(sum, 1, 1e-5);
    EXPECT_EQ(row[size], 50);  // nothing beyond the row
  }
}

TEST(Standard, CountsItsScores) {
  Case p;
  p.seq_q = 100;
  p.seq_kv = 200;
  EXPECT_EQ(standard_extra_bytes(p), 100 * 200 * 4);
  p.pass = Pass::backward;
  EXPECT_EQ(standard_extra_bytes(p), 2 * 100 * 200 * 4);
}

TEST(Ceiling, EveryInstructionSetHasARate) {
  Team team(2);
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx}) {
    if (!available(isa)) continue;
    EXPECT_GT(multiply_add_gflops(isa, team, 1e-2), 0.0) << name_of(isa);
  }
  EXPECT_TRUE(available(best_isa()));
  EXPECT_EQ(isa_of_row("cpu_amx"), Isa::amx);
  EXPECT_EQ(isa_of_row("cpu_avx512_bf16"), Isa::avx512_bf16);
  EXPECT_EQ(isa_of_row("cpu_avx512"), Isa::avx512);
  EXPECT_EQ(isa_of_row("cpu_avx2"), Isa::avx2);
  EXPECT_EQ(isa_of_row("cpu_portable"), Isa::portable);
}

TEST(Memory, ProbeSeesWhatWasTouched) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's shadow memory is resident too";
#endif
  constexpr std::size_t kBytes = 64 << 20;
  const MemoryProbe probe;
  {
    HostTensor tensor(DType::f32, {kBytes / 4});
    tensor.fill_zero();
  }
  const auto peak = probe.peak_bytes();
  if (!peak) GTEST_SKIP() << "the system does not tell";
  EXPECT_NEAR(static_cast<double>(*peak), kBytes, kBytes / 16);
}

}  // namespace
}  // namespace tessera::cli::bench
