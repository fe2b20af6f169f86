// The scheme's exact arithmetic: which tokens share a scale, how sums are ordered, how numbers are
// rounded. Plain host code that every backend must match bit for bit; docs/quantised.md has the
// formulas. All arithmetic is IEEE f32, rounded to nearest even, without contraction.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "tessera/quant.hpp"

namespace tessera::quant {

inline constexpr std::int64_t kQueryBlock = 128;
inline constexpr std::int64_t kQueryWarp = 32;
inline constexpr std::int64_t kKeyBlock = 64;

/// The largest integer of each format, and the largest E4M3 number.
inline constexpr float kInt8Levels = 127;
inline constexpr float kInt4Levels = 7;
inline constexpr float kE4M3Largest = 448;

/// The largest magnitude of a group counts as at least this: then a scale and its inverse are
/// finite and not zero, and a group of zeros needs no case of its own.
inline constexpr float kLeastMagnitude = 0x1p-100f;

/// Weights are 2^(t − M + 8), M the row's maximum rounded up to an integer: at most 256. M moves by
/// whole powers of two, so quantised weights do not depend on the order of the keys.
inline constexpr int kWeightExponent = 8;

inline float levels_of(Precision precision) {
  return precision == Precision::sage4 ? kInt4Levels : kInt8Levels;
}

enum class Side : std::uint8_t { queries, keys };

/// The group whose scale token i of a sequence has.
inline std::int64_t group_of(ScaleGranularity granularity, Side side, std::int64_t i) {
  const bool queries = side == Side::queries;
  switch (granularity) {
    case ScaleGranularity::tensor:
      return 0;
    case ScaleGranularity::block:
      return i / (queries ? kQueryBlock : kKeyBlock);
    case ScaleGranularity::warp:
      return i / (queries ? kQueryWarp : kKeyBlock);
    case ScaleGranularity::token:
      return i;
    default:
      return queries ? i / kQueryWarp * 8 + i % 8 : i / kKeyBlock * 4 + i % 8 / 2;
  }
}

/// Groups that `tokens` tokens are cut into, those of an incomplete last block included.
inline std::int64_t group_count(ScaleGranularity granularity, Side side, std::int64_t tokens) {
  if (tokens == 0) return 0;
  const std::int64_t block = side == Side::queries ? kQueryBlock : kKeyBlock;
  const std::int64_t whole = (tokens + block - 1) / block * block;
  return group_of(granularity, side, whole - 1) + 1;
}

/// A sum in the scheme's order: eight running sums, number i joins sum i mod 8; at the end halves
/// are added: 0 + 4, 1 + 5, 2 + 6, 3 + 7, then 0 + 2, 1 + 3, then 0 + 1.
class OrderedSum {
 public:
  void add(std::int64_t i, float x) { part_[i % 8] += x; }
  float total() const {
    const float a = part_[0] + part_[4], b = part_[1] + part_[5];
    const float c = part_[2] + part_[6], d = part_[3] + part_[7];
    return (a + c) + (b + d);
  }

 private:
  float part_[8] = {};
};

/// The largest magnitude of a group as bits without the sign: their order is that of the numbers,
/// with infinity and then NaN above all.
inline std::uint32_t magnitude_bits(float x) {
  return std::bit_cast<std::uint32_t>(x) & 0x7fffffffu;
}

/// A group's scale and its inverse. A group with an infinity or a NaN has NaN for its scale and
/// zero for its inverse and its integers: whatever it is multiplied with becomes NaN.
struct Scale {
  float scale = 0;
  float inverse = 0;
};

inline Scale scale_of(std::uint32_t largest_magnitude, float levels) {
  const float largest = std::bit_cast<float>(largest_magnitude);
  if (largest_magnitude >= 0x7f800000u) return {std::numeric_limits<float>::quiet_NaN(), 0};
  const float magnitude = largest > kLeastMagnitude ? largest : kLeastMagnitude;
  return {magnitude / levels, levels / magnitude};
}

/// x / scale, rounded to nearest even.
inline std::int8_t quantise(float x, const Scale& s) {
  if (s.inverse == 0) return 0;
  return static_cast<std::int8_t>(std::nearbyint(x * s.inverse));
}

/// y rounded to E4M3 (four exponent bits, three of mantissa, denormals of 2⁻⁹), to nearest even;
/// magnitudes above 448 become 448. NaN stays NaN.
inline float round_to_e4m3(float y) {
  const float magnitude = std::fabs(y);
  if (!(magnitude >= 0x1p-6f)) return std::nearbyint(y * 0x1p9f) * 0x1p-9f;
  if (magnitude > kE4M3Largest) return std::copysign(kE4M3Largest, y);
  const std::uint32_t u = std::bit_cast<std::uint32_t>(y);
  return std::bit_cast<float>((u + 0x7ffffu + (u >> 20 & 1u)) & 0xfff00000u);
}

/// The code of a number that is E4M3's already: sign, exponent with bias 7, mantissa; 0x7f is NaN.
inline std::uint8_t encode_e4m3(float y) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(y);
  const std::uint32_t sign = u >> 24 & 0x80u;
  const float magnitude = std::fabs(y);
  if (!(magnitude <= kE4M3Largest)) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (magnitude < 0x1p-6f)
    return static_cast<std::uint8_t>(sign | static_cast<std::uint32_t>(magnitude * 0x1p9f));
  return static_cast<std::uint8_t>(sign | ((u >> 20 & 0x7ffu) - (120u << 3)));
}

inline float decode_e4m3(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80u) << 24;
  const std::uint32_t exponent = code >> 3 & 15u;
  const std::uint32_t mantissa = code & 7u;
  if ((code & 0x7fu) == 0x7fu) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) {
    return std::bit_cast<float>(
        std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-9f) | sign);
  }
  return std::bit_cast<float>(sign | (exponent + 120u) << 23 | mantissa << 20);
}

}  // namespace tessera::quant
