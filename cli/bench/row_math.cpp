#include "bench/row_math.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <numeric>

#include "bench/ceiling.hpp"

// Each function is compiled once for every instruction set: an inlined body takes on the target of
// the function around it. Vectors are as wide as that target's registers.
#define TESSERA_BENCH_INLINE inline __attribute__((always_inline))

namespace tessera::cli::bench {
namespace {

// GCC takes a size that depends on a template parameter in a typedef only.
template <int kLanes>
struct Vectors {
  typedef float Floats __attribute__((vector_size(4 * kLanes)));
  typedef std::int32_t Ints __attribute__((vector_size(4 * kLanes)));
};

// Calls `body(vector)` for all of x, the last, partial vector filled up with `filler`, and stores
// what it left there.
template <int kLanes, typename Body>
TESSERA_BENCH_INLINE void for_each_vector(float* x, std::int64_t size, float filler, Body body) {
  using Floats = typename Vectors<kLanes>::Floats;
  Floats v;
  std::int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes) {
    std::memcpy(&v, x + j, sizeof v);
    body(v);
    std::memcpy(x + j, &v, sizeof v);
  }
  if (j == size) return;
  v = Floats{} + filler;
  std::memcpy(&v, x + j, static_cast<std::size_t>(size - j) * sizeof(float));
  body(v);
  std::memcpy(x + j, &v, static_cast<std::size_t>(size - j) * sizeof(float));
}

// x ← e^x for x ≤ 0: 2^n · 2^f with |f| ≤ 1/2, the latter by its Taylor polynomial of degree 6
// (relative error below 2e-7). Results below 2^-126 become 2^-126, far under a sum of at least 1.
template <int kLanes>
TESSERA_BENCH_INLINE void exponential(typename Vectors<kLanes>::Floats& x) {
  using Floats = typename Vectors<kLanes>::Floats;
  using Ints = typename Vectors<kLanes>::Ints;
  constexpr float kRounder = 0x1.8p23f;  // adding it rounds to an integer in the low bits
  Floats t = x * 1.44269504f;
  const Floats lowest = Floats{} - 126.0f;
  t = t > lowest ? t : lowest;
  const Floats rounded = t + kRounder;
  const Floats f = t - (rounded - kRounder);
  Floats p = f * 1.54035304e-4f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.0f;
  x = reinterpret_cast<Floats>(reinterpret_cast<Ints>(p) + (reinterpret_cast<Ints>(rounded) << 23));
}

template <int kLanes>
TESSERA_BENCH_INLINE void exponentials(float* x, std::int64_t size, float shift) {
  for_each_vector<kLanes>(x, size, 0, [shift](typename Vectors<kLanes>::Floats& v) {
    v -= shift;
    exponential<kLanes>(v);
  });
}

template <int kLanes>
TESSERA_BENCH_INLINE void softmax(float* x, std::int64_t size) {
  using Floats = typename Vectors<kLanes>::Floats;
  Floats largest = Floats{} - INFINITY;
  for_each_vector<kLanes>(x, size, -INFINITY,
                          [&](Floats& v) { largest = v > largest ? v : largest; });
  float lanes[kLanes];
  std::memcpy(lanes, &largest, sizeof lanes);
  const float max = *std::max_element(lanes, lanes + kLanes);
  Floats sums = {};
  for_each_vector<kLanes>(x, size, -INFINITY, [&](Floats& v) {
    v -= max;
    exponential<kLanes>(v);
    sums += v;
  });
  std::memcpy(lanes, &sums, sizeof lanes);
  const float sum = std::accumulate(lanes, lanes + kLanes, 0.0f);
  const float inverse = 1.0f / sum;
  for_each_vector<kLanes>(x, size, 0, [inverse](Floats& v) { v *= inverse; });
}

TESSERA_BENCH_INLINE void gradient(float* p, const float* d_p, std::int64_t size, float delta) {
  for (std::int64_t j = 0; j < size; ++j) p[j] *= d_p[j] - delta;
}

struct RowFunctions {
  void (*softmax)(float*, std::int64_t);
  void (*exponentials)(float*, std::int64_t, float);
  void (*gradient)(float*, const float*, std::int64_t, float);
};

void softmax_portable(float* x, std::int64_t n) { softmax<4>(x, n); }
void exponentials_portable(float* x, std::int64_t n, float s) { exponentials<4>(x, n, s); }
void gradient_portable(float* p, const float* d, std::int64_t n, float s) { gradient(p, d, n, s); }

#if defined(__x86_64__) || defined(__i386__)
#define TESSERA_BENCH_AVX2 __attribute__((target("avx2,fma")))
#define TESSERA_BENCH_AVX512 __attribute__((target("avx512f,avx2,fma")))
TESSERA_BENCH_AVX2 void softmax_avx2(float* x, std::int64_t n) { softmax<8>(x, n); }
TESSERA_BENCH_AVX2 void exponentials_avx2(float* x, std::int64_t n, float s) {
  exponentials<8>(x, n, s);
}
TESSERA_BENCH_AVX2 void gradient_avx2(float* p, const float* d, std::int64_t n, float s) {
  gradient(p, d, n, s);
}
TESSERA_BENCH_AVX512 void softmax_avx512(float* x, std::int64_t n) { softmax<16>(x, n); }
TESSERA_BENCH_AVX512 void exponentials_avx512(float* x, std::int64_t n, float s) {
  exponentials<16>(x, n, s);
}
TESSERA_BENCH_AVX512 void gradient_avx512(float* p, const float* d, std::int64_t n, float s) {
  gradient(p, d, n, s);
}
#endif

RowFunctions choose() {
#if defined(__x86_64__) || defined(__i386__)
  if (best_isa() == Isa::avx512) return {softmax_avx512, exponentials_avx512, gradient_avx512};
  if (best_isa() == Isa::avx2) return {softmax_avx2, exponentials_avx2, gradient_avx2};
#endif
  return {softmax_portable, exponentials_portable, gradient_portable};
}

const RowFunctions& functions() {
  static const RowFunctions chosen = choose();
  return chosen;
}

// Zeroes the row outside [begin, end); whether anything is left inside.
bool clear_outside(float* row, std::int64_t size, std::int64_t begin, std::int64_t end) {
  if (begin >= end) {
    std::fill(row, row + size, 0.0f);
    return false;
  }
  std::fill(row, row + begin, 0.0f);
  std::fill(row + end, row + size, 0.0f);
  return true;
}

}  // namespace

void softmax_row(float* row, std::int64_t size, std::int64_t begin, std::int64_t end) {
  if (clear_outside(row, size, begin, end)) functions().softmax(row + begin, end - begin);
}

void exponential_row(float* row, std::int64_t size, std::int64_t begin, std::int64_t end,
                     float lse) {
  if (clear_outside(row, size, begin, end)) functions().exponentials(row + begin, end - begin, lse);
}

void softmax_gradient_row(float* p, const float* d_p, std::int64_t size, float delta) {
  functions().gradient(p, d_p, size, delta);
}

}  // namespace tessera::cli::bench
