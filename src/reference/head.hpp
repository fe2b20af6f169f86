// One query head of one sequence: which keys a query attends to, and with which scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include "core/philox.hpp"
#include "core/registry.hpp"
#include "core/sequences.hpp"

namespace tessera::reference {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Sequences to go through: the problem's, and in packed problems one more of no used length, which
/// is made of the tokens behind the last sequence.
inline std::int64_t sequence_count(const Problem& problem) {
  return problem.batch + (problem.varlen ? 1 : 0);
}

/// Sequence b < sequence_count.
Sequence sequence_at(const Problem& problem, const Inputs& inputs, std::int64_t b);

/// The head of query h in sequence b, once `select` has named them: its keys and values as doubles,
/// and the scores of one query at a time. Indices i and j count from the sequence's first query and
/// key.
class Head {
 public:
  /// Doubles of workspace that a Head works in.
  static std::size_t doubles(const Problem& problem);

  Head(const Problem& problem, const Inputs& inputs, double* workspace);

  void select(std::int64_t b, std::int64_t h);

  const Sequence& sequence() const { return sequence_; }
  const double* k(std::int64_t j) const { return k_ + j * problem_.head_dim; }
  const double* v(std::int64_t j) const { return v_ + j * problem_.head_dim_v; }

  /// The sink's logit, −inf if there is none.
  double sink() const { return sink_; }

  /// Whether query i may look at key j: causal mask, window, dense mask and block mask all allow
  /// it.
  bool attends(std::int64_t i, std::int64_t j) const;

  /// Computes the scores of query i: s(j) for every key in use, −inf where i does not attend to j.
  /// `products`, if given, takes the place of q · k for each key.
  void score(std::int64_t i, const double* products = nullptr);
  const double* q() const { return q_; }
  double s(std::int64_t j) const { return s_[j]; }
  /// d s(j) / d (scale · q·k): what the softcap does to a gradient.
  double cap_slope(std::int64_t j) const { return cap_slope_[j]; }

  /// Z: 0 if dropout drops element (i, j) of the softmax, else 1 / (1 − p).
  double keep(std::int64_t i, std::int64_t j) const;

 private:
  bool block_mask_allows(std::int64_t i, std::int64_t j) const;

  const Problem& problem_;
  const Inputs& inputs_;
  DropoutStream dropout_;
  double *k_, *v_, *q_, *s_, *cap_slope_, *bias_;
  std::int64_t b_ = -1, h_ = -1;
  std::int64_t loaded_b_ = -1, loaded_h_kv_ = -1;
  Sequence sequence_;
  double slope_ = 0;
  double sink_ = -kInfinity;
};

}  // namespace tessera::reference
