// Precision of the two matrix products: exact, or SageAttention2's quantisation (Zhang et al. 2024)
// in one scheme that every backend shares. docs/quantised.md has the formulas.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tessera/export.h"
#include "tessera/status.hpp"

namespace tessera {

/// exact: products in the input dtype with f32 accumulation (FlashAttention).
/// sage8: Q and K in INT8. sage4: Q and K in INT4. Both: P and V in FP8 E4M3, or in 16 bits.
/// adaptive: whichever of the three an AdaptivePlan names for the (layer, step).
/// A quantised forward pass has an exact backward pass, which starts from the forward's o and lse.
enum class Precision : std::uint8_t { exact = 0, sage8 = 1, sage4 = 2, adaptive = 3 };

/// Which elements of Q and of K share a scale. Tokens count from the start of their sequence.
///   tensor  all of the sequence's
///   block   128 queries; 64 keys
///   warp    32 queries; 64 keys
///   thread  queries i, i + 8, i + 16, i + 24 of 32; keys 2j, 2j + 1 modulo 8 of 64: what one
///   thread
///           of a tensor-core product holds
///   token   one query; one key
enum class ScaleGranularity : std::uint8_t {
  automatic = 0,  ///< thread
  tensor = 1,
  block = 2,
  warp = 3,
  thread = 4,
  token = 5
};

/// Which mean of Q's channels is subtracted before Q is quantised, and its product with K added
/// back unquantised.
enum class SmoothQ : std::uint8_t {
  automatic = 0,  ///< none for sage8, tensor for sage4.
  none = 1,
  tensor = 2,  ///< Over the sequence's queries.
  block = 3    ///< Over each block of 128 queries.
};

enum class Smoothing : std::uint8_t { automatic = 0, off = 1, on = 2 };

/// What P and V are multiplied in.
enum class PvFormat : std::uint8_t {
  automatic = 0,  ///< fp8
  fp8 = 1,        ///< E4M3; V with a scale for each channel.
  half = 2        ///< f16 for f16 inputs, otherwise bf16.
};

/// The pieces of the scheme. Those left automatic are chosen by the precision.
struct Quantization {
  ScaleGranularity granularity = ScaleGranularity::automatic;
  SmoothQ smooth_q = SmoothQ::automatic;
  /// Subtract the mean of K's channels over the sequence's keys, which changes no softmax.
  /// Automatic: on.
  Smoothing smooth_k = Smoothing::automatic;
  /// Subtract the mean of V's channels, and add it to O. Automatic: off.
  Smoothing smooth_v = Smoothing::automatic;
  PvFormat pv = PvFormat::automatic;

  friend bool operator==(const Quantization&, const Quantization&) = default;
};

/// `from` with every automatic piece replaced by what it means for sage8 or sage4.
TESSERA_API Quantization resolved(Precision precision, const Quantization& from);

TESSERA_API const char* name_of(Precision precision);
TESSERA_API const char* name_of(ScaleGranularity granularity);
TESSERA_API const char* name_of(SmoothQ smooth_q);
TESSERA_API const char* name_of(PvFormat pv);

/// A plan made by `tessera calibrate`: the precision of each (layer, step) of one model. Immutable;
/// copies are cheap and share state.
class TESSERA_API AdaptivePlan {
 public:
  /// Reads a plan file, JSON. Refused, with what was found and expected: another format or version,
  /// missing or ill-typed members, an entry that occurs twice, and, unless `model` is empty, a plan
  /// for another model.
  static Result<AdaptivePlan> load(const std::string& path, const std::string& model = {});
  /// The same from the text itself.
  static Result<AdaptivePlan> parse(const std::string& json, const std::string& model = {});

  /// The model that was calibrated.
  const std::string& model() const;
  std::int64_t heads_q() const;
  std::int64_t heads_kv() const;
  std::int64_t head_dim() const;
  /// The pieces of the scheme that the entry was calibrated with are part of the answer.
  struct Choice {
    Precision precision = Precision::exact;
    Quantization quantization;
  };
  /// What to compute (layer, step) with; an error if the plan has no such entry.
  Result<Choice> choose(std::int64_t layer, std::int64_t step) const;

 private:
  struct State;
  explicit AdaptivePlan(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

}  // namespace tessera
