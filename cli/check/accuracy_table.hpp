// tessera check --precision: what each piece of the scheme is worth.
#pragma once

#include <string>
#include <vector>

#include "flags.hpp"
#include "scheme_flags.hpp"

namespace tessera::cli {

struct AccuracyFlags {
  std::vector<Precision> precisions;  ///< sage8, sage4.
  SchemeFlags scheme;                 ///< If any piece is given, only that scheme is measured.
  std::vector<std::string> activations;
};

/// Measures on files if there are some, or else on generated data of every distribution and on
/// the activations; prints a line for each set of data and scheme. Returns the exit code.
int check_accuracy(const AccuracyFlags& flags, const FileFlags& files, const FeatureFlags& features,
                   const ShapeFlags& shape, const PlaceFlags& place);

}  // namespace tessera::cli
