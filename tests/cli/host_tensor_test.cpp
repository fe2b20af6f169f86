#include "host_tensor.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "error.hpp"

namespace tessera::cli {
namespace {

constexpr DType kReal[] = {DType::f32, DType::f16, DType::bf16, DType::f64};

TEST(HostTensor, IsRowMajorAndAligned) {
  const HostTensor t(DType::f32, {2, 3, 5});
  const TensorView view = t.view();
  EXPECT_EQ(t.elements(), 30);
  EXPECT_EQ(t.bytes(), 120);
  EXPECT_EQ(view.stride[0], 15);
  EXPECT_EQ(view.stride[1], 5);
  EXPECT_EQ(view.stride[2], 1);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.data) % 64, 0u);
  EXPECT_FALSE(HostTensor().present());
  EXPECT_FALSE(HostTensor().view().present());
  EXPECT_FALSE(HostTensor().converted(DType::f64).present());
}

TEST(HostTensor, RefusesSizesThatNoTensorHas) {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_THROW(HostTensor(DType::f32, {}), Error);
  EXPECT_THROW(HostTensor(DType::f32, {1, 1, 1, 1, 1}), Error);
  EXPECT_THROW(HostTensor(DType::f32, {2, -1}), Error);
  EXPECT_THROW(HostTensor(DType::f32, {most / 2}), Error);
  EXPECT_THROW(HostTensor(DType::f32, {most, most}), Error);
  EXPECT_THROW(HostTensor(DType::f32, {0, most, most}), Error);
  EXPECT_EQ(HostTensor(DType::f32, {0, 7}).elements(), 0);
}

// The f16 nearest to x, ties to even, from the definition.
double nearest_f16(double x) {
  if (x == 0) return x;
  const int exponent = std::max(std::ilogb(x), -14);
  const double unit = std::ldexp(1, exponent - 10);
  const double rounded = std::nearbyint(x / unit) * unit;
  return std::abs(rounded) > 65504 ? std::copysign(INFINITY, x) : rounded;
}

TEST(HostTensor, RoundsOnceToNearestEven) {
  HostTensor noise(DType::f64, {4000});
  noise.fill_normal(1, 2, 0, 3);
  for (int i = 0; i < noise.elements(); ++i) {
    // Around the midpoint of two f16 numbers, where rounding through f32 first goes wrong.
    const double x = nearest_f16(noise.at(i));
    const double midpoint = x + std::ldexp(1, std::max(std::ilogb(x), -14) - 11);
    for (double value : {noise.at(i), midpoint, std::nextafter(midpoint, 100.0),
                         std::nextafter(midpoint, -100.0), noise.at(i) * 1e-6}) {
      std::uint16_t bits = 0;
      store_real(&bits, DType::f16, value);
      ASSERT_EQ(load_real(&bits, DType::f16), nearest_f16(value)) << value;
    }
  }
}

TEST(HostTensor, ConvertsSpecialValues) {
  HostTensor t(DType::f64, {5});
  const double values[] = {INFINITY, -INFINITY, NAN, 1e300, -0.0};
  for (int i = 0; i < 5; ++i) t.set(i, values[i]);
  for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const HostTensor to = t.converted(dtype);
    EXPECT_EQ(to.at(0), INFINITY);
    EXPECT_EQ(to.at(1), -INFINITY);
    EXPECT_TRUE(std::isnan(to.at(2)));
    EXPECT_EQ(to.at(3), INFINITY);
    EXPECT_TRUE(std::signbit(to.at(4)));
  }
}

TEST(HostTensor, NormalDataIsNormalAndReproducible) {
  HostTensor wide(DType::f64, {50001});
  wide.fill_normal(7, 3);
  double sum = 0, squares = 0, beyond_two = 0;
  for (int i = 0; i < wide.elements(); ++i) {
    sum += wide.at(i);
    squares += wide.at(i) * wide.at(i);
    beyond_two += std::abs(wide.at(i)) > 2;
  }
  const auto n = static_cast<double>(wide.elements());
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(beyond_two / n, 0.0455, 5 * std::sqrt(0.0455 / n));

  for (DType dtype : kReal) {
    HostTensor narrow(dtype, {11});
    narrow.fill_normal(7, 3);
    HostTensor first(dtype, {1});
    for (int i = 0; i < 11; ++i) {
      first.set(0, wide.at(i));
      EXPECT_EQ(narrow.at(i), first.at(0)) << name_of(dtype);
    }
  }
  HostTensor other(DType::f64, {11});
  other.fill_normal(7, 4);
  EXPECT_NE(other.at(0), wide.at(0));
}

TEST(HostTensor, PoisonIsNaN) {
  for (DType dtype : kReal) {
    HostTensor t(dtype, {3});
    t.poison();
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(t.at(i)));
    t.fill_zero();
    EXPECT_EQ(t.at(2), 0);
  }
}

}  // namespace
}  // namespace tessera::cli
