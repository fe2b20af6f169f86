// The scheme's exact arithmetic: E4M3 against its definition, groups, ordered sums, scales.
#include "quant/scheme.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "quant/quantize.hpp"
#include "support/random.hpp"

namespace tessera::quant {
namespace {

/// Every non-negative E4M3 number, by the format's definition.
std::vector<float> e4m3_numbers() {
  std::vector<float> numbers;
  for (int code = 0; code < 0x7f; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    numbers.push_back(exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10));
  }
  return numbers;
}

TEST(E4M3, CodesAndNumbersAreInverse) {
  const std::vector<float> numbers = e4m3_numbers();
  EXPECT_EQ(numbers.back(), 448);
  for (int code = 0; code < 0x7f; ++code) {
    const float x = numbers[code];
    EXPECT_EQ(decode_e4m3(static_cast<std::uint8_t>(code)), x);
    EXPECT_EQ(encode_e4m3(x), code);
    EXPECT_EQ(encode_e4m3(-x), code | 0x80);
    EXPECT_EQ(decode_e4m3(static_cast<std::uint8_t>(code | 0x80)), -x);
    EXPECT_EQ(round_to_e4m3(x), x);
  }
  EXPECT_TRUE(std::isnan(decode_e4m3(0x7f)));
  EXPECT_TRUE(std::isnan(decode_e4m3(0xff)));
  EXPECT_EQ(encode_e4m3(NAN) & 0x7f, 0x7f);
}

TEST(E4M3, RoundsToNearestEven) {
  const std::vector<float> numbers = e4m3_numbers();
  for (std::size_t i = 0; i + 1 < numbers.size(); ++i) {
    const float low = numbers[i], high = numbers[i + 1];
    const float middle = (low + high) / 2;
    EXPECT_EQ(round_to_e4m3(middle), i % 2 == 0 ? low : high) << middle;
    EXPECT_EQ(round_to_e4m3(std::nextafter(middle, 0.0f)), low);
    EXPECT_EQ(round_to_e4m3(std::nextafter(middle, 1e9f)), high);
    EXPECT_EQ(round_to_e4m3(-std::nextafter(middle, 1e9f)), -high);
  }
  EXPECT_EQ(round_to_e4m3(449), 448);
  EXPECT_EQ(round_to_e4m3(-1e30f), -448);
  EXPECT_EQ(round_to_e4m3(INFINITY), 448);
  EXPECT_TRUE(std::isnan(round_to_e4m3(NAN)));
}

TEST(Groups, AreWhatOneThreadHolds) {
  const auto members = [](ScaleGranularity g, Side side, std::int64_t group, std::int64_t tokens) {
    std::set<std::int64_t> found;
    for (std::int64_t i = 0; i < tokens; ++i) {
      if (group_of(g, side, i) == group) found.insert(i);
    }
    return found;
  };
  using Set = std::set<std::int64_t>;
  EXPECT_EQ(members(ScaleGranularity::thread, Side::queries, 3, 128), (Set{3, 11, 19, 27}));
  EXPECT_EQ(members(ScaleGranularity::thread, Side::queries, 8, 128), (Set{32, 40, 48, 56}));
  EXPECT_EQ(members(ScaleGranularity::thread, Side::keys, 5, 128),
            (Set{66, 67, 74, 75, 82, 83, 90, 91, 98, 99, 106, 107, 114, 115, 122, 123}));
  EXPECT_EQ(members(ScaleGranularity::warp, Side::queries, 1, 128).size(), 32u);
  EXPECT_EQ(members(ScaleGranularity::warp, Side::keys, 1, 128).size(), 64u);
  EXPECT_EQ(members(ScaleGranularity::block, Side::queries, 0, 200).size(), 128u);
  EXPECT_EQ(members(ScaleGranularity::token, Side::keys, 7, 200), (Set{7}));
  EXPECT_EQ(members(ScaleGranularity::tensor, Side::keys, 0, 200).size(), 200u);
  for (auto g : {ScaleGranularity::tensor, ScaleGranularity::block, ScaleGranularity::warp,
                 ScaleGranularity::thread, ScaleGranularity::token}) {
    for (Side side : {Side::queries, Side::keys}) {
      EXPECT_EQ(group_count(g, side, 0), 0);
      for (std::int64_t tokens : {1, 31, 64, 65, 128, 300}) {
        for (std::int64_t i = 0; i < tokens; ++i) {
          EXPECT_LT(group_of(g, side, i), group_count(g, side, tokens));
        }
      }
    }
  }
}

TEST(OrderedSums, AddInTheirOrder) {
  // 2^24 swallows ones that come to it alone, not those that meet first.
  OrderedSum sum;
  sum.add(0, 0x1p24f);
  for (std::int64_t i = 1; i < 16; ++i) sum.add(i, 1);
  EXPECT_EQ(sum.total(), 0x1p24f + 14);  // sum 0 loses one, the others 1 + 1 each
}

TEST(Scales, OfZerosTinyNumbersAndInfinities) {
  const Scale zero = scale_of(0, 127);
  EXPECT_TRUE(zero.scale > 0 && std::isfinite(zero.inverse));
  EXPECT_EQ(quantise(0, zero), 0);
  const Scale one = scale_of(magnitude_bits(-127), 127);
  EXPECT_EQ(one.scale, 1);
  EXPECT_EQ(quantise(-127, one), -127);
  EXPECT_EQ(quantise(2.5f, one), 2);
  EXPECT_EQ(quantise(3.5f, one), 4);
  for (float x : {INFINITY, -INFINITY, NAN}) {
    const Scale s = scale_of(magnitude_bits(x), 127);
    EXPECT_TRUE(std::isnan(s.scale));
    EXPECT_EQ(quantise(x, s), 0);
    EXPECT_EQ(quantise(5, s), 0);
  }
  test::Random random(3);
  for (int i = 0; i < 100000; ++i) {
    const float largest = std::ldexp(static_cast<float>(1 + random.uniform()),
                                     static_cast<int>(random.uniform() * 220) - 100);
    for (float levels : {kInt8Levels, kInt4Levels}) {
      const Scale s = scale_of(magnitude_bits(largest), levels);
      ASSERT_EQ(quantise(largest, s), levels) << largest;
      ASSERT_EQ(quantise(-largest, s), -levels) << largest;
    }
    const Scale s = scale_of(magnitude_bits(largest), kE4M3Largest);
    ASSERT_EQ(round_to_e4m3(largest * s.inverse), kE4M3Largest);
  }
}

TEST(Quantise, TokensThatAreNotUsedHaveNoPart) {
  std::vector<float> x(100 * 3, 1.0f);
  bool used[100];
  for (int i = 0; i < 100; ++i) {
    used[i] = i % 3 != 0;
    for (int d = 0; d < 3; ++d) x[i * 3 + d] = used[i] ? static_cast<float>(d + 1) : NAN;
  }
  const TokenRows rows = {x.data(), 100, 3, used};
  float mean[3];
  channel_means(rows, kKeyBlock, mean);
  for (int d = 0; d < 3; ++d) EXPECT_EQ(mean[d], d + 1);
  std::vector<std::int8_t> values(300);
  std::vector<float> scales(128);
  std::vector<std::uint32_t> magnitudes(128);
  quantise_tokens(rows, {}, ScaleGranularity::token, Side::keys, 127, values.data(), scales.data(),
                  magnitudes.data());
  EXPECT_EQ(values[0], 0);
  EXPECT_EQ(values[3], 42);
  EXPECT_EQ(values[5], 127);
  std::vector<std::uint8_t> codes(300);
  float channel_scales[3];
  quantise_channels(rows, {mean}, codes.data(), channel_scales);
  for (std::uint8_t code : codes) EXPECT_EQ(code, 0);
  quantise_channels(rows, {}, codes.data(), channel_scales);
  EXPECT_EQ(codes[0], 0);
  EXPECT_EQ(codes[3], 0x7e);
}

}  // namespace
}  // namespace tessera::quant
