// Which precision each (layer, step) gets.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "check/accuracy.hpp"
#include "tessera/quant.hpp"

namespace tessera::cli::calibrate {

/// One (layer, step): the worst of its samples in each precision.
struct Entry {
  std::int64_t layer = 0, step = 0;
  int samples = 0;
  Difference sage4, sage8;
  Precision precision = Precision::sage4;
  std::string reason;  ///< Why not sage4; empty for sage4.

  const Difference& in(Precision p) const { return p == Precision::sage8 ? sage8 : sage4; }
};

/// What makes a result good: larger is better (SageAttention2).
inline double score(const Difference& d) { return d.cosine * (1 - d.relative_l1); }

/// Keeps the worse of two samples' figures.
void keep_worse(const Difference& sample, Difference& worst);

struct Targets {
  std::optional<double> fraction;  ///< Share of entries, the worst in sage4, that get sage8.
  std::optional<double> min_cosine, max_l1;

  /// Without targets and fraction the fraction is 0.3.
  double fraction_to_use() const;
  /// What of the targets is missed, e.g. "relative L1 0.061 > 0.05"; empty if nothing is.
  std::string missed(const Difference& d) const;
};

/// sage8 for the worst fraction of the entries, rounded up, and for those that miss a target in
/// sage4; exact for those that miss it in sage8, too.
void choose_precisions(const Targets& targets, std::vector<Entry>& entries);

}  // namespace tessera::cli::calibrate
