#include "bench/ceiling.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "tessera/attention.hpp"

#if defined(__x86_64__) || defined(__i386__)
#define TESSERA_BENCH_X86
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tessera::cli::bench {
namespace {

// The loops below keep every accumulator in a register: the empty asm statements hide the factors'
// values, and forbid merging, reordering or dropping rounds. x ← a·x + b stays between 0 and 1, far
// from denormals. Each returns a sum, so that nothing is dead.
constexpr float kFactor = 0.75f;
constexpr float kAddend = 0.125f;

#ifdef TESSERA_BENCH_X86
constexpr int kAvx512Chains = 24;
constexpr int kAvx2Chains = 12;
constexpr double kAmxFlopsPerRound = 4 * 2.0 * 16 * 16 * 32;

__attribute__((target("avx512f"))) float run_avx512(std::int64_t rounds) {
  __m512 a = _mm512_set1_ps(kFactor);
  __m512 b = _mm512_set1_ps(kAddend);
  asm volatile("" : "+v"(a), "+v"(b));
  __m512 x[kAvx512Chains];
#pragma GCC unroll 24
  for (int c = 0; c < kAvx512Chains; ++c) x[c] = b;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int c = 0; c < kAvx512Chains; ++c) {
      x[c] = _mm512_fmadd_ps(x[c], a, b);
      asm volatile("" : "+v"(x[c]));
    }
  }
  __m512 sum = x[0];
#pragma GCC unroll 24
  for (int c = 1; c < kAvx512Chains; ++c) sum = _mm512_add_ps(sum, x[c]);
  float lanes[16];
  _mm512_storeu_ps(lanes, sum);
  return lanes[0] + lanes[15];
}

/// Sums of products of zero pairs, which are as fast as others.
__attribute__((target("avx512f,avx512bf16"))) float run_avx512_bf16(std::int64_t rounds) {
  __m512 pairs = _mm512_setzero_ps();
  asm volatile("" : "+v"(pairs));
  __m512 x[kAvx512Chains];
#pragma GCC unroll 24
  for (int c = 0; c < kAvx512Chains; ++c) x[c] = pairs;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int c = 0; c < kAvx512Chains; ++c) {
      x[c] = _mm512_dpbf16_ps(x[c], (__m512bh)pairs, (__m512bh)pairs);
      asm volatile("" : "+v"(x[c]));
    }
  }
  float lanes[16];
  _mm512_storeu_ps(lanes, x[0]);
  return lanes[0];
}

/// Four tiles of 16 × 16 sums, operands in tile registers too; all zero, which is as fast. That the
/// process may use tiles has been seen to by the library, whose row is asked for (`available`).
__attribute__((target("amx-tile,amx-bf16"))) float run_amx(std::int64_t rounds) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("ldtilecfg %0" ::"m"(config));
  for (std::int64_t r = 0; r < rounds; ++r) {
    asm volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n\t"
        "tdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n\t"
        "tdpbf16ps %tmm7, %tmm5, %tmm3");
  }
  asm volatile("tilerelease");
  return 0;
}

__attribute__((target("avx2,fma"))) float run_avx2(std::int64_t rounds) {
  __m256 a = _mm256_set1_ps(kFactor);
  __m256 b = _mm256_set1_ps(kAddend);
  asm volatile("" : "+x"(a), "+x"(b));
  __m256 x[kAvx2Chains];
#pragma GCC unroll 12
  for (int c = 0; c < kAvx2Chains; ++c) x[c] = b;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kAvx2Chains; ++c) {
      x[c] = _mm256_fmadd_ps(x[c], a, b);
      asm volatile("" : "+x"(x[c]));
    }
  }
  __m256 sum = x[0];
#pragma GCC unroll 12
  for (int c = 1; c < kAvx2Chains; ++c) sum = _mm256_add_ps(sum, x[c]);
  float lanes[8];
  _mm256_storeu_ps(lanes, sum);
  return lanes[0] + lanes[7];
}
#endif

#ifdef __aarch64__
constexpr int kPortableChains = 24;
constexpr double kPortableFlopsPerRound = 2.0 * 4 * kPortableChains;

float run_portable(std::int64_t rounds) {
  float32x4_t a = vdupq_n_f32(kFactor);
  float32x4_t b = vdupq_n_f32(0.0f);
  asm volatile("" : "+w"(a), "+w"(b));
  float32x4_t x[kPortableChains];
#pragma GCC unroll 24
  for (int c = 0; c < kPortableChains; ++c) x[c] = a;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int c = 0; c < kPortableChains; ++c) {
      x[c] = vfmaq_f32(x[c], a, b);
      asm volatile("" : "+w"(x[c]));
    }
  }
  float32x4_t sum = x[0];
#pragma GCC unroll 24
  for (int c = 1; c < kPortableChains; ++c) sum = vaddq_f32(sum, x[c]);
  return vaddvq_f32(sum);
}
#else
// Without a fused operation, multiplications and additions side by side, each in chains of its own;
// the factor is 1 and the addend 0, hidden from the compiler.
constexpr int kPortableChains = 14;
using PortableVector = float __attribute__((vector_size(16)));
constexpr double kPortableFlopsPerRound = 4.0 * kPortableChains;

inline void keep_in_register(PortableVector& x) {
#ifdef TESSERA_BENCH_X86
  asm volatile("" : "+x"(x));
#else
  asm volatile("" : "+m"(x));
#endif
}

float run_portable(std::int64_t rounds) {
  PortableVector factor = PortableVector{} + 1.0f;
  PortableVector addend = PortableVector{};
  keep_in_register(factor);
  keep_in_register(addend);
  PortableVector x[kPortableChains];
#pragma GCC unroll 14
  for (int c = 0; c < kPortableChains; ++c) x[c] = factor;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 14
    for (int c = 0; c < kPortableChains; ++c) {
      x[c] = c % 2 == 0 ? x[c] * factor : x[c] + addend;
      keep_in_register(x[c]);
    }
  }
  PortableVector sum = x[0];
#pragma GCC unroll 14
  for (int c = 1; c < kPortableChains; ++c) sum += x[c];
  return sum[0] + sum[3];
}
#endif

struct Kernel {
  float (*run)(std::int64_t rounds);
  double flops_per_round;
};

Kernel kernel_of(Isa isa) {
#ifdef TESSERA_BENCH_X86
  if (isa == Isa::amx) return {run_amx, kAmxFlopsPerRound};
  if (isa == Isa::avx512_bf16) return {run_avx512_bf16, 2.0 * 32 * kAvx512Chains};
  if (isa == Isa::avx512) return {run_avx512, 2.0 * 16 * kAvx512Chains};
  if (isa == Isa::avx2) return {run_avx2, 2.0 * 8 * kAvx2Chains};
#endif
  static_cast<void>(isa);
  return {run_portable, kPortableFlopsPerRound};
}

std::atomic<float> sink;

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

bool available(Isa isa) {
  if (isa == Isa::portable) return true;
#ifdef TESSERA_BENCH_X86
  if (isa == Isa::amx) {
    for (const Implementation& row : implementations()) {
      if (row.name == "cpu_amx") return row.available;
    }
    return false;
  }
  if (isa == Isa::avx512_bf16) return __builtin_cpu_supports("avx512bf16");
  if (isa == Isa::avx512) return __builtin_cpu_supports("avx512f");
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

Isa best_isa() {
  if (available(Isa::avx512)) return Isa::avx512;
  return available(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

Isa isa_of_row(const std::string& row) {
  if (row.find("amx") != std::string::npos) return Isa::amx;
  if (row.find("avx512_bf16") != std::string::npos) return Isa::avx512_bf16;
  if (row.find("avx512") != std::string::npos) return Isa::avx512;
  if (row.find("avx2") != std::string::npos) return Isa::avx2;
  return Isa::portable;
}

double multiply_add_gflops(Isa isa, Team& team, double seconds) {
  const Kernel kernel = kernel_of(isa);
  constexpr std::int64_t kProbeRounds = 20000;
  const double probe = team.run([&](int) { sink = kernel.run(kProbeRounds); });
  const auto rounds =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(kProbeRounds * (seconds / probe)));
  const double elapsed = team.run([&](int) { sink = kernel.run(rounds); });
  return kernel.flops_per_round * static_cast<double>(rounds) * team.threads() / elapsed * 1e-9;
}

double copy_gbytes_per_second(Team& team) {
  constexpr std::size_t kTotalBytes = std::size_t{256} << 20;
  constexpr int kPasses = 5;
  const std::size_t bytes = kTotalBytes / static_cast<std::size_t>(team.threads());
  struct Buffers {
    std::unique_ptr<std::byte[]> from, to;
  };
  std::vector<Buffers> buffers(team.threads());
  for (Buffers& b : buffers) {
    b.from.reset(new std::byte[bytes]);
    b.to.reset(new std::byte[bytes]);
  }
  // First touch by the thread that copies places the pages near it.
  team.run([&](int i) {
    std::memset(buffers[i].from.get(), i + 1, bytes);
    std::memset(buffers[i].to.get(), 0, bytes);
  });
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double elapsed =
        team.run([&](int i) { std::memcpy(buffers[i].to.get(), buffers[i].from.get(), bytes); });
    best = std::max(best, 2.0 * static_cast<double>(bytes) * team.threads() / elapsed * 1e-9);
  }
  return best;
}

}  // namespace tessera::cli::bench
