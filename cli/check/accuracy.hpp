// How far quantised attention is from exact attention.
#pragma once

#include <string>
#include <vector>

#include "attention_case.hpp"
#include "check/compare.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli {

/// Of O against exact attention.
struct Accuracy {
  std::string rejection;    ///< Why nothing was computed; empty if something was.
  std::string row;          ///< The row that ran.
  Difference all;           ///< Over all heads.
  double worst_cosine = 1;  ///< Of one head of one sequence, whichever is worst.
  double worst_l1 = 0;
};

/// Measures quantised runs of one case.
class AccuracyMeter {
 public:
  /// Where quantised attention runs: on the table's choice, or on the row `implementation`.
  struct Place {
    Device device;
    std::string implementation;
    Executor* executor = nullptr;
  };

  /// Computes exact attention, in f32 on the tensors as they are, on the device's table's choice.
  /// Throws Error, beginning with the case's name, if an input or the result is not finite.
  AccuracyMeter(AttentionCase attention_case, Place place);

  const AttentionCase& attention_case() const { return case_; }

  /// The case in `precision`, with the pieces of `scheme`.
  Accuracy measure(Precision precision, const Quantization& scheme);
  /// The case in what `plan` says for a layer and step.
  Accuracy measure(const AdaptivePlan& plan, std::int64_t layer, std::int64_t step);

 private:
  Accuracy run();
  std::int64_t head_of(std::int64_t index) const;

  AttentionCase case_;
  Place place_;
  HostTensor exact_;
};

}  // namespace tessera::cli
