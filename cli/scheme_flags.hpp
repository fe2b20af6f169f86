// The flags that name a precision and the pieces of its scheme.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tessera/attention.hpp"

namespace CLI {
class App;
}

namespace tessera::cli {

/// Empty: automatic.
struct SchemeFlags {
  std::string granularity, smooth_q, smooth_k, smooth_v, pv;

  /// The first flag that was given with its value, "--pv half"; empty if none was.
  std::string first_given() const;
};
void add_scheme_flags(CLI::App& command, SchemeFlags& flags);
Quantization to_quantization(const SchemeFlags& flags);

/// "exact", "sage8", "sage4" or "adaptive".
Precision to_precision(const std::string& name);

/// What one run computes with.
struct PrecisionFlags {
  std::string precision;  ///< Empty: exact.
  SchemeFlags scheme;
  std::string plan;
  std::optional<std::int64_t> layer, step;
};
void add_precision_flags(CLI::App& command, PrecisionFlags& flags);

/// Puts the precision into `attention`. Loads the plan of adaptive into `plan`, which must live as
/// long as plans are made with `attention`. Throws Error for flags that contradict one another.
void apply_precision(const PrecisionFlags& flags, Attention& attention,
                     std::optional<AdaptivePlan>& plan);

}  // namespace tessera::cli
