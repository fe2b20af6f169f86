// Bad input inside the command line: thrown anywhere below a command, reported by run_app.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "tessera/status.hpp"

namespace tessera::cli {

/// What the user did wrong, in one line: the argument, its value and what was expected.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Throws the status's message unless it is ok.
inline void require(const Status& status) {
  if (!status.ok()) throw Error(status.message());
}

/// The value, or the status's message thrown.
template <typename T>
T require(Result<T> result) {
  require(result.status());
  return std::move(result).value();
}

}  // namespace tessera::cli
