// Robust summaries of a few samples.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace tessera::cli::bench {

/// The middle sample, or the mean of the two middle ones. `samples` is not empty.
inline double median(std::vector<double> samples) {
  const std::size_t middle = samples.size() / 2;
  std::nth_element(samples.begin(), samples.begin() + middle, samples.end());
  const double upper = samples[middle];
  if (samples.size() % 2 == 1) return upper;
  return 0.5 * (upper + *std::max_element(samples.begin(), samples.begin() + middle));
}

/// The smallest and the largest sample. `samples` is not empty.
inline double minimum(const std::vector<double>& samples) {
  return *std::min_element(samples.begin(), samples.end());
}
inline double maximum(const std::vector<double>& samples) {
  return *std::max_element(samples.begin(), samples.end());
}

}  // namespace tessera::cli::bench
