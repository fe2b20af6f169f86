#include "quant/quantize.hpp"

#include <algorithm>

namespace tessera::quant {
namespace {

float block_sum(const TokenRows& x, std::int64_t begin, std::int64_t end, std::int64_t d) {
  OrderedSum sum;
  for (std::int64_t i = begin; i < end; ++i) {
    if (x.has(i)) sum.add(i - begin, x.at(i, d));
  }
  return sum.total();
}

float count_used(const TokenRows& x, std::int64_t begin, std::int64_t end) {
  std::int64_t count = 0;
  for (std::int64_t i = begin; i < end; ++i) count += x.has(i);
  return static_cast<float>(count);
}

}  // namespace

void channel_means(const TokenRows& x, std::int64_t block, float* mean) {
  const float count = count_used(x, 0, x.rows);
  for (std::int64_t d = 0; d < x.columns; ++d) {
    OrderedSum sum;
    for (std::int64_t begin = 0; begin < x.rows; begin += block) {
      sum.add(begin / block, block_sum(x, begin, std::min(begin + block, x.rows), d));
    }
    mean[d] = count == 0 ? 0 : sum.total() / count;
  }
}

void block_means(const TokenRows& x, std::int64_t block, float* means) {
  for (std::int64_t begin = 0; begin < x.rows; begin += block) {
    const std::int64_t end = std::min(begin + block, x.rows);
    const float count = count_used(x, begin, end);
    for (std::int64_t d = 0; d < x.columns; ++d) {
      means[begin / block * x.columns + d] = count == 0 ? 0 : block_sum(x, begin, end, d) / count;
    }
  }
}

void quantise_tokens(const TokenRows& x, const Means& means, ScaleGranularity granularity,
                     Side side, float levels, std::int8_t* values, float* scales,
                     std::uint32_t* magnitudes) {
  const std::int64_t groups = group_count(granularity, side, x.rows);
  std::fill_n(magnitudes, groups, 0u);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    std::uint32_t& largest = magnitudes[group_of(granularity, side, i)];
    for (std::int64_t d = 0; x.has(i) && d < x.columns; ++d) {
      largest = std::max(largest, magnitude_bits(means.subtract_from(x.at(i, d), x, i, d)));
    }
  }
  for (std::int64_t g = 0; g < groups; ++g) scales[g] = scale_of(magnitudes[g], levels).scale;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    const Scale scale = scale_of(magnitudes[group_of(granularity, side, i)], levels);
    for (std::int64_t d = 0; d < x.columns; ++d) {
      values[i * x.columns + d] =
          x.has(i) ? quantise(means.subtract_from(x.at(i, d), x, i, d), scale) : std::int8_t{0};
    }
  }
}

void quantise_channels(const TokenRows& x, const Means& means, std::uint8_t* codes, float* scales) {
  for (std::int64_t d = 0; d < x.columns; ++d) {
    std::uint32_t largest = 0;
    for (std::int64_t i = 0; i < x.rows; ++i) {
      if (x.has(i))
        largest = std::max(largest, magnitude_bits(means.subtract_from(x.at(i, d), x, i, d)));
    }
    const Scale scale = scale_of(largest, kE4M3Largest);
    scales[d] = scale.scale;
    for (std::int64_t i = 0; i < x.rows; ++i) {
      const bool zero = scale.inverse == 0 || !x.has(i);
      codes[i * x.columns + d] =
          zero ? std::uint8_t{0}
               : encode_e4m3(
                     round_to_e4m3(means.subtract_from(x.at(i, d), x, i, d) * scale.inverse));
    }
  }
}

}  // namespace tessera::quant
