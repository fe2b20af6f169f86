// Statuses and results: how every fallible call of Tessera reports. No exception leaves the
// library.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace tessera {

/// What kind of failure a Status reports. The numeric values are those of the C ABI.
enum class StatusCode : int {
  ok = 0,
  invalid_argument = 1,  ///< The caller's argument is wrong; the message names it.
  unsupported = 2,       ///< The request is legal, but no implementation at hand accepts it.
  out_of_memory = 3,     ///< A workspace or host allocation failed.
  device_error = 4,      ///< A device or driver call failed; the message names the kernel.
  internal = 5,          ///< A bug in Tessera.
};

/// Outcome of a call: a code and, unless it is ok, one line that says which argument is wrong, its
/// value and what was expected. Value type; safe to copy and move between threads.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::ok; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
};

/// Either a value or the Status that says why there is none.
/// `value()` must be called only when `ok()`; `status()` of an ok result is an ok Status.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}         // NOLINT: implicit by design
  Result(Status status) : state_(std::move(status)) {}  // NOLINT: implicit by design

  bool ok() const { return std::holds_alternative<T>(state_); }
  Status status() const { return ok() ? Status() : std::get<Status>(state_); }
  T& value() & { return std::get<T>(state_); }
  const T& value() const& { return std::get<T>(state_); }
  T&& value() && { return std::get<T>(std::move(state_)); }
  T* operator->() { return &std::get<T>(state_); }
  const T* operator->() const { return &std::get<T>(state_); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace tessera
