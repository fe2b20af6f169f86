// Half precision against the definition of the formats: widening for every bit pattern, rounding
// for every f32 next to a boundary, and a sweep of all f32 exponents.
#include "core/half.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/random.hpp"

namespace tessera {
namespace {

/// The value of a binary floating-point format with `exponent_bits` and `fraction_bits`.
double value_of(std::uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int top = (1 << exponent_bits) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits & static_cast<std::uint32_t>(top));
  const double fraction = bits & ((1u << fraction_bits) - 1);
  const double sign = bits >> (exponent_bits + fraction_bits) != 0 ? -1 : 1;
  if (exponent == top) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(1 + std::ldexp(fraction, -fraction_bits), exponent - bias);
}

template <typename Half>
struct Format;
template <>
struct Format<f16> {
  static constexpr int kExponent = 5, kFraction = 10;
};
template <>
struct Format<bf16> {
  static constexpr int kExponent = 8, kFraction = 7;
};

template <typename Half>
double value_of(std::uint16_t bits) {
  return value_of(bits, Format<Half>::kExponent, Format<Half>::kFraction);
}

template <typename Half>
std::uint16_t round_to(float x) {
  Half half;
  from_f32(x, half);
  return half.bits;
}

template <typename Half>
class HalfTest : public testing::Test {};
using Formats = testing::Types<f16, bf16>;
TYPED_TEST_SUITE(HalfTest, Formats);

TYPED_TEST(HalfTest, WidensEveryBitPattern) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    const float wide = to_f32(TypeParam{pattern});
    const double expected = value_of<TypeParam>(pattern);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(wide)) << bits;
    } else {
      ASSERT_EQ(wide, expected) << bits;
      ASSERT_EQ(std::signbit(wide), std::signbit(expected)) << bits;
    }
  }
}

TYPED_TEST(HalfTest, RoundsEveryValueToItself) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    const float wide = to_f32(TypeParam{pattern});
    const std::uint16_t back = round_to<TypeParam>(wide);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(to_f32(TypeParam{back}))) << bits;
    } else {
      ASSERT_EQ(back, pattern);
    }
  }
}

/// Between each pair of neighbours: just below the middle, the middle (to even), just above.
TYPED_TEST(HalfTest, RoundsToNearestEven) {
  const std::uint32_t infinity = ((1u << Format<TypeParam>::kExponent) - 1)
                                 << Format<TypeParam>::kFraction;
  for (std::uint32_t bits = 0; bits + 1 < infinity; ++bits) {
    const auto low = static_cast<std::uint16_t>(bits);
    const auto high = static_cast<std::uint16_t>(bits + 1);
    const double exact = (value_of<TypeParam>(low) + value_of<TypeParam>(high)) / 2;
    const auto middle = static_cast<float>(exact);
    ASSERT_EQ(static_cast<double>(middle), exact) << bits;
    const float below = std::nextafterf(middle, 0.0f);
    const float above = std::nextafterf(middle, std::numeric_limits<float>::infinity());
    ASSERT_EQ(round_to<TypeParam>(middle), bits % 2 == 0 ? low : high) << bits;
    ASSERT_EQ(round_to<TypeParam>(below), low) << bits;
    ASSERT_EQ(round_to<TypeParam>(above), high) << bits;
    ASSERT_EQ(round_to<TypeParam>(-below), low | 0x8000u) << bits;
    ASSERT_EQ(round_to<TypeParam>(-above), high | 0x8000u) << bits;
  }
}

TYPED_TEST(HalfTest, OverflowsToInfinity) {
  const std::uint32_t infinity = ((1u << Format<TypeParam>::kExponent) - 1)
                                 << Format<TypeParam>::kFraction;
  const double most = value_of<TypeParam>(static_cast<std::uint16_t>(infinity - 1));
  const double step = most - value_of<TypeParam>(static_cast<std::uint16_t>(infinity - 2));
  const double limit = most + step / 2;  // rounds to even, which is infinity
  EXPECT_EQ(round_to<TypeParam>(std::numeric_limits<float>::infinity()), infinity);
  EXPECT_EQ(round_to<TypeParam>(-std::numeric_limits<float>::infinity()), infinity | 0x8000u);
  EXPECT_EQ(round_to<TypeParam>(static_cast<float>(limit)), infinity);
  EXPECT_EQ(round_to<TypeParam>(std::nextafterf(static_cast<float>(limit), 0.0f)), infinity - 1);
  EXPECT_EQ(round_to<TypeParam>(std::numeric_limits<float>::max()), infinity);
}

TYPED_TEST(HalfTest, KeepsNans) {
  for (std::uint32_t payload : {1u, 0x1000u, 0x3fffffu, 0x400000u, 0x7fffffu}) {
    for (std::uint32_t sign : {0u, 0x80000000u}) {
      const float nan = std::bit_cast<float>(sign | 0x7f800000u | payload);
      EXPECT_TRUE(std::isnan(to_f32(TypeParam{round_to<TypeParam>(nan)}))) << payload;
    }
  }
}

/// Whatever the f32, no half is nearer than the chosen one.
TYPED_TEST(HalfTest, NoNeighbourIsNearer) {
  test::Random random(3);
  for (int n = 0; n < 2000000; ++n) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    const std::uint16_t bits = round_to<TypeParam>(x);
    const double value = value_of<TypeParam>(bits);
    if (!std::isfinite(x) || !std::isfinite(value)) continue;
    const double error = std::abs(value - x);
    for (int neighbour : {-1, 1}) {
      const auto other = static_cast<std::uint16_t>(bits + neighbour);
      if ((other ^ bits) & 0x8000u) continue;
      const double distance = std::abs(value_of<TypeParam>(other) - x);
      ASSERT_TRUE(!(distance < error)) << x;
    }
  }
}

#ifdef __FLT16_MAX__
/// The compiler's own _Float16, over every f32 with a low half of a few telling patterns.
TEST(F16, AgreesWithTheCompiler) {
  for (std::uint32_t high = 0; high < 0x10000; ++high) {
    for (std::uint32_t low :
         {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x2fffu, 0x3000u, 0x8000u, 0xffffu}) {
      const float x = std::bit_cast<float>(high << 16 | low);
      if (std::isnan(x)) continue;
      const auto native = static_cast<_Float16>(x);
      ASSERT_EQ(round_to<f16>(x), std::bit_cast<std::uint16_t>(native)) << x;
    }
  }
}
#endif

}  // namespace
}  // namespace tessera
