// What tensors of a problem must look like: shapes, dtypes, strides, device.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "core/problem.hpp"

namespace tessera {

inline Status invalid(std::string message) {
  return Status(StatusCode::invalid_argument, std::move(message));
}

#define TESSERA_RETURN_IF_ERROR(expression) \
  if (Status status_ = (expression); !status_.ok()) return status_

/// Sizes and strides that can be used at all: ranks, signs, no 64-bit overflow, unit last stride.
Status check_layout(const char* name, const TensorView& view);

/// How a tensor's size may relate to the expected one.
enum class Extent : std::uint8_t { equal, equal_or_one, at_least };

struct Dimension {
  std::int64_t size = 0;
  Extent extent = Extent::equal;

  bool accepts(std::int64_t actual) const;
  std::string expected() const;
};

/// Checks many tensors of one problem against expected shapes, dtypes and the device.
class TensorChecker {
 public:
  explicit TensorChecker(const Problem& problem) : problem_(problem) {}

  Status check(const char* name, const TensorView& view, std::initializer_list<DType> dtypes,
               std::initializer_list<Dimension> expected) const;

  /// A tensor over (head, token, last): [B, H, S, last], or [T, H, last] packed.
  Status check_tokens(const char* name, const TensorView& view, std::int64_t heads,
                      std::int64_t tokens, std::int64_t last) const;

  /// The LSE and its gradient: [B, Hq, Sq], or [Hq, Tq] packed.
  Status check_rows(const char* name, const TensorView& view) const;

  /// A tensor over the score matrix, broadcast or not.
  Status check_scores(const char* name, const TensorView& view,
                      std::initializer_list<DType> dtypes) const;

 private:
  const Problem& problem_;
};

/// All inputs that the problem says are there.
Status check_input_shapes(const Problem& p, const Inputs& in);

}  // namespace tessera
