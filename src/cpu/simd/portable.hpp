// The portable vocabulary: 4 lanes of the compiler's own vectors, for any architecture GCC or Clang
// targets (SSE2 on x86-64, NEON on AArch64). What each name means: cpu/simd/avx512.hpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/simd/storage.hpp"

namespace tessera::cpu {

struct Portable {
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 4;
  static constexpr int kTileVectors = 2;

  using V = float __attribute__((vector_size(16)));
  using I = std::int32_t __attribute__((vector_size(16)));
  using U = std::uint32_t __attribute__((vector_size(16)));
  using M = std::int32_t __attribute__((vector_size(16)));  // −1 or 0 in each lane

  static V zero() { return V{}; }
  static V set(float x) { return V{x, x, x, x}; }
  static V load(const float* p) {
    V x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, V x) { std::memcpy(p, &x, sizeof x); }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  static V fnma(V a, V b, V c) { return c - a * b; }
  static V max(V a, V b) { return select(a > b, a, b); }
  static V min(V a, V b) { return select(a < b, a, b); }
  static V abs(V a) { return bits_to_float(float_to_bits(a) & set_int(0x7fffffff)); }
  /// To the nearest integer for |a| < 2²²; adding and taking away 1.5 · 2²³ leaves no fraction
  /// bits.
  static V round(V a) {
    const V magic = set(0x1.8p23f);
    return (a + magic) - magic;
  }
  static V scale_by_power(V a, V n) {
    const I e = __builtin_convertvector(max(n, set(-127.0f)), I);
    return a * bits_to_float((e + set_int(127)) << 23);
  }

  static constexpr bool kSplitsAtFloor = false;

  static I set_int(std::int32_t x) { return I{x, x, x, x}; }
  static I load_int(const std::int32_t* p) {
    I x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static I sub_int(I a, I b) { return a - b; }
  static I abs_int(I a) {
    const I sign = a >> 31;
    return (a ^ sign) - sign;
  }
  static V to_float(I a) { return __builtin_convertvector(a, V); }

  static M less(V a, V b) { return a < b; }
  static M equal(V a, V b) { return a == b; }
  static M less_int(I a, I b) { return a < b; }
  static M both(M a, M b) { return a & b; }
  static M neither(M a) { return ~a; }
  static V select(M m, V a, V b) {
    return bits_to_float((float_to_bits(a) & m) | (float_to_bits(b) & ~m));
  }

  static V load_as_f32(const float* p) { return load(p); }
  static V load_as_f32(const f16* p) {
    const I u = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
    const I magnitude = u & set_int(0x7fff);
    // Rebias by multiplication, which also normalises denormals; inf and NaN need their own
    // exponent.
    const V finite = bits_to_float(magnitude << 13) * set(0x1p112f);
    const V special = bits_to_float((magnitude << 13) | set_int(0x7f800000));
    const V value = select(magnitude > set_int(0x7bff), special, finite);
    return bits_to_float(float_to_bits(value) | ((u & set_int(0x8000)) << 16));
  }
  static V load_as_f32(const bf16* p) {
    return bits_to_float(I{p[0].bits, p[1].bits, p[2].bits, p[3].bits} << 16);
  }
  static void store_from_f32(float* p, V x) { store(p, x); }
  static void store_from_f32(f16* p, V x) {
    const I u = float_to_bits(x);
    const I magnitude = u & set_int(0x7fffffff);
    // Denormals: the adder rounds. Normals: round to nearest even at bit 13.
    const I denormal = float_to_bits(bits_to_float(magnitude) + set(0.5f)) - set_int(0x3f000000);
    const I odd = (magnitude >> 13) & set_int(1);
    const I normal = (magnitude - set_int(0x38000000) + set_int(0xfff) + odd) >> 13;
    I half = choose(magnitude < set_int(0x38800000), denormal, normal);
    half = choose(magnitude >= set_int(0x477ff000), set_int(0x7c00), half);
    half = choose(magnitude > set_int(0x7f800000), set_int(0x7e00), half);
    half |= (u >> 16) & set_int(0x8000);
    for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<std::uint16_t>(half[i]);
  }
  static void store_from_f32(bf16* p, V x) {
    const I u = float_to_bits(x);
    const I rounded = u + set_int(0x7fff) + ((u >> 16) & set_int(1));
    const I bits = choose(x != x, u | set_int(0x400000), rounded) >> 16;
    for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<std::uint16_t>(bits[i]);
  }

  static U set_word(std::uint32_t x) { return U{x, x, x, x}; }
  static U xor_word(U a, U b) { return a ^ b; }
  static void multiply_words(U a, U b, U& high, U& low) {
    for (int i = 0; i < kLanes; ++i) {
      const std::uint64_t product = static_cast<std::uint64_t>(a[i]) * b[i];
      high[i] = static_cast<std::uint32_t>(product >> 32);
      low[i] = static_cast<std::uint32_t>(product);
    }
  }
  static M has_bit(U a, U b) { return (a & b) == b; }
  static M at_least_word(U a, U b) { return a >= b; }

  static void transpose(V (&r)[kLanes]) {
    V t[kLanes];
    for (int i = 0; i < kLanes; ++i) t[i] = V{r[0][i], r[1][i], r[2][i], r[3][i]};
    for (int i = 0; i < kLanes; ++i) r[i] = t[i];
  }

 private:
  static I float_to_bits(V x) {
    I bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
  }
  static V bits_to_float(I bits) {
    V x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  static I choose(M m, I a, I b) { return (a & m) | (b & ~m); }
};

}  // namespace tessera::cpu
