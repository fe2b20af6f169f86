// Philox against the known answers published with Random123, and the dropout stream's contract.
#include "core/philox.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace tessera {
namespace {

TEST(Philox, KnownAnswers) {
  // Random123's kat_vectors, philox4x32 with 10 rounds: zeros, ones, and digits of π.
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (PhiloxCounter{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(
      philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
      (PhiloxCounter{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(Dropout, KeepsTheShareItShould) {
  for (double p : {0.0, 0.1, 0.5, 0.9}) {
    const DropoutStream stream(p, 1, 2);
    const int n = 40000;
    int kept = 0;
    for (int x = 0; x < n; ++x) kept += stream.kept(0, 1, x / 200, x % 200);
    const double deviation = std::sqrt(n * p * (1 - p));
    EXPECT_NEAR(kept, n * (1 - p), 5 * deviation) << p;
    EXPECT_FLOAT_EQ(stream.keep_scale, static_cast<float>(1 / (1 - p)));
  }
}

TEST(Dropout, WordsAreThoseOfTheDocumentedCounters) {
  const std::uint64_t seed = 0x0123456789abcdefu, offset = 0xfedcba9876543210u;
  const DropoutStream stream(0.37, seed, offset);
  const PhiloxCounter key =
      philox4x32({0x76543210u, 0xfedcba98u, 0, 0}, {0x89abcdefu, 0x01234567u});
  const auto threshold = static_cast<std::uint32_t>(0.37 * 4294967296.0);
  for (std::uint32_t b : {0u, 3u}) {
    for (std::uint32_t h : {0u, 5u}) {
      for (std::uint32_t i : {0u, 1u, 1000u}) {
        for (std::uint32_t j = 0; j < 23; ++j) {
          const PhiloxCounter words = philox4x32({j / 4, i, h, b}, {key[0], key[1]});
          EXPECT_EQ(stream.kept(b, h, i, j), words[j % 4] >= threshold);
        }
      }
    }
  }
}

TEST(Dropout, EveryArgumentMatters) {
  const DropoutStream stream(0.5, 7, 9);
  const DropoutStream other_seed(0.5, 8, 9), other_offset(0.5, 7, 10);
  int seed = 0, offset = 0, b = 0, h = 0, i = 0, j = 0;
  for (int x = 0; x < 64; ++x) {
    const bool kept = stream.kept(1, 2, 3, x);
    seed += kept != other_seed.kept(1, 2, 3, x);
    offset += kept != other_offset.kept(1, 2, 3, x);
    b += kept != stream.kept(2, 2, 3, x);
    h += kept != stream.kept(1, 3, 3, x);
    i += kept != stream.kept(1, 2, 4, x);
    j += kept != stream.kept(1, 2, 3, x + 1);
  }
  for (int changed : {seed, offset, b, h, i, j}) EXPECT_GT(changed, 10);
}

TEST(Dropout, NothingIsDroppedAtZero) {
  const DropoutStream stream(0, 1, 1);
  for (int j = 0; j < 1000; ++j) EXPECT_TRUE(stream.kept(0, 0, 0, j));
}

}  // namespace
}  // namespace tessera
