#include "calibrate/choose.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace tessera::cli::calibrate {

void keep_worse(const Difference& sample, Difference& worst) {
  worst.max_abs = std::max(worst.max_abs, sample.max_abs);
  worst.cosine = std::min(worst.cosine, sample.cosine);
  worst.relative_l1 = std::max(worst.relative_l1, sample.relative_l1);
  worst.rmse = std::max(worst.rmse, sample.rmse);
}

double Targets::fraction_to_use() const {
  constexpr double kFraction = 0.3;
  return fraction.value_or(min_cosine || max_l1 ? 0 : kFraction);
}

std::string Targets::missed(const Difference& d) const {
  if (min_cosine && d.cosine < *min_cosine) {
    return fmt::format("cosine {:.5f} < {:g}", d.cosine, *min_cosine);
  }
  if (max_l1 && d.relative_l1 > *max_l1) {
    return fmt::format("relative L1 {:.4f} > {:g}", d.relative_l1, *max_l1);
  }
  return "";
}

void choose_precisions(const Targets& targets, std::vector<Entry>& entries) {
  std::vector<Entry*> ranked;
  for (Entry& entry : entries) ranked.push_back(&entry);
  std::stable_sort(ranked.begin(), ranked.end(), [](const Entry* a, const Entry* b) {
    return score(a->sage4) < score(b->sage4);
  });
  const double fraction = targets.fraction_to_use();
  // 0.3 · 10 must not become 4 by a rounding.
  constexpr double kSlack = 1e-9;
  const auto worst =
      static_cast<std::size_t>(std::ceil(fraction * static_cast<double>(entries.size()) - kSlack));
  for (std::size_t i = 0; i < ranked.size(); ++i) {
    Entry& entry = *ranked[i];
    const std::string missed = targets.missed(entry.sage4);
    if (i >= worst && missed.empty()) continue;
    entry.precision = Precision::sage8;
    entry.reason = missed.empty() ? fmt::format("the worst {:g} %", 100 * fraction)
                                  : fmt::format("sage4: {}", missed);
    if (const std::string still = targets.missed(entry.sage8); !still.empty()) {
      entry.precision = Precision::exact;
      entry.reason = fmt::format("sage8: {}", still);
    }
  }
}

}  // namespace tessera::cli::calibrate
