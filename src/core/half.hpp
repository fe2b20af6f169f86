// f16 and bf16 in plain C++: conversions to and from f32, round to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace tessera {

/// IEEE binary16, as stored.
struct f16 {
  std::uint16_t bits;
};

/// The upper half of an IEEE binary32, as stored.
struct bf16 {
  std::uint16_t bits;
};

inline float to_f32(float x) { return x; }

inline float to_f32(bf16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline float to_f32(f16 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // inf, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  // Rebias by multiplication, which also normalises binary16's denormals.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

inline void from_f32(float x, float& out) { out = x; }

inline void from_f32(float x, bf16& out) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) {  // NaN: keep it one when the low half goes
    out.bits = static_cast<std::uint16_t>(u >> 16 | 0x40u);
    return;
  }
  out.bits = static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

inline void from_f32(float x, f16& out) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = u >> 16 & 0x8000u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more, or is inf
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // denormal in binary16: the adder does the rounding
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<std::uint32_t>(sum) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  out.bits = static_cast<std::uint16_t>(sign | half);
}

}  // namespace tessera
