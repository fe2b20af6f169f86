#include "check/distributions.hpp"

#include <cmath>
#include <numbers>

namespace tessera::cli {
namespace {

// None of the streams that other tensors of a case are drawn from.
enum Stream : std::uint64_t { kQ = 2000, kK, kV, kQMean, kKMean, kVMean };

constexpr std::int64_t kOutlierEvery = 16;
constexpr double kOutlier = 8;
constexpr double kBias = 2;
constexpr double kValueBias = 4;

template <typename Change>
void change_elements(HostTensor& tensor, const Change& change) {
  const std::int64_t channels = tensor.sizes().back();
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    tensor.set(i, change(tensor.at(i), i % channels));
  }
}

// A normal number becomes the uniform one of the same rank.
void make_uniform(HostTensor& tensor) {
  change_elements(tensor, [](double x, std::int64_t) {
    return std::sqrt(3.0) * std::erf(x / std::numbers::sqrt2);
  });
}

void make_outliers(HostTensor& tensor) {
  change_elements(tensor, [](double x, std::int64_t d) {
    return d % kOutlierEvery == kOutlierEvery / 2 ? kOutlier * x : x;
  });
}

void add_biases(HostTensor& tensor, double deviation, std::uint64_t seed, Stream stream) {
  HostTensor means(DType::f32, {tensor.sizes().back()});
  means.fill_normal(seed, stream, 0, deviation);
  change_elements(tensor, [&](double x, std::int64_t d) { return x + means.at(d); });
}

}  // namespace

const char* name_of(Distribution distribution) {
  switch (distribution) {
    case Distribution::normal:
      return "normal";
    case Distribution::uniform:
      return "uniform";
    case Distribution::outliers:
      return "channel outliers";
    case Distribution::biases:
      return "channel biases of Q, K";
    case Distribution::value_biases:
      return "channel biases of V";
  }
  return "";
}

void fill_tokens(Distribution distribution, std::uint64_t seed, AttentionCase& c) {
  c.q.fill_normal(seed, kQ);
  c.k.fill_normal(seed, kK);
  c.v.fill_normal(seed, kV);
  switch (distribution) {
    case Distribution::normal:
      return;
    case Distribution::uniform:
      for (HostTensor* tensor : {&c.q, &c.k, &c.v}) make_uniform(*tensor);
      return;
    case Distribution::outliers:
      make_outliers(c.q);
      make_outliers(c.k);
      return;
    case Distribution::biases:
      add_biases(c.q, kBias, seed, kQMean);
      add_biases(c.k, kBias, seed, kKMean);
      return;
    case Distribution::value_biases:
      add_biases(c.v, kValueBias, seed, kVMean);
      return;
  }
}

}  // namespace tessera::cli
