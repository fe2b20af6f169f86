// What the files of the C interface share: error reporting, size-prefixed structs, handles.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/format.hpp"
#include "tessera/attention.hpp"
#include "tessera/tessera.h"

struct tessera_block_mask {
  tessera::BlockMask mask;
};

struct tessera_executor {
  std::unique_ptr<tessera::Executor> owned;  ///< Null for the default executor.
  tessera::Executor* executor = nullptr;
};

struct tessera_adaptive_plan {
  tessera::AdaptivePlan plan;
};

namespace tessera::c {

/// Keeps `message` as this thread's last error and returns `code`. Allocates nothing.
tessera_status report(StatusCode code, std::string_view message) noexcept;

/// Runs `call`, which returns a Status, and turns whatever comes out of it, exceptions included,
/// into a status and a message.
template <typename Call>
tessera_status guarded(Call&& call) noexcept {
  try {
    const Status status = call();
    return status.ok() ? TESSERA_OK : report(status.code(), status.message());
  } catch (const std::bad_alloc&) {
    return report(StatusCode::out_of_memory, "host memory: an allocation failed");
  } catch (const std::exception& exception) {
    return report(StatusCode::internal, exception.what());
  } catch (...) {
    return report(StatusCode::internal, "exception of unknown type, expected none");
  }
}

inline Status invalid(std::string message) {
  return Status(StatusCode::invalid_argument, std::move(message));
}

/// Ok if `pointer` is not null; `expected` completes the message.
inline Status require(const void* pointer, const char* name, const char* expected) {
  if (pointer != nullptr) return {};
  return invalid(formatted("{}: null, expected {}", name, expected));
}

/// No version of any struct comes near this; a larger struct_size is an uninitialised one.
inline constexpr std::size_t kMaxStructSize = 4096;

/// A struct_size that some version of T may have: whole members, nothing absurd.
template <typename T>
Status check_struct_size(std::size_t size, const char* name, const char* type) {
  if (size != 0 && size <= kMaxStructSize && size % alignof(T) == 0) return {};
  return invalid(formatted("{}.struct_size: {}, expected sizeof({}), {} in this version", name,
                           size, type, sizeof(T)));
}

/// Copies a caller's struct of any version over the defaults in `to`: members it is too short for
/// stay as they are; members that this library does not know must be zero.
template <typename T>
Status read_struct(const T* from, const char* name, const char* type, T& to) {
  static_assert(std::is_trivially_copyable_v<T> && offsetof(T, struct_size) == 0);
  if (Status status = require(from, name, type); !status.ok()) return status;
  std::size_t size = 0;
  std::memcpy(&size, from, sizeof(size));
  if (Status status = check_struct_size<T>(size, name, type); !status.ok()) return status;
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(from);
  for (std::size_t at = sizeof(T); at < size; ++at) {
    if (bytes[at] != 0) {
      return Status(StatusCode::unsupported,
                    formatted("{}.struct_size: {}, expected {}: member at byte {} is set but "
                              "unknown to this version of Tessera",
                              name, size, sizeof(T), at));
    }
  }
  std::memcpy(&to, from, std::min(size, sizeof(T)));
  return {};
}

/// Fills in a caller's struct of any version, as far as it reaches, and zeroes what lies beyond the
/// known members. Keeps its struct_size.
template <typename T>
Status write_struct(const T& from, const char* name, const char* type, T* to) {
  static_assert(std::is_trivially_copyable_v<T> && offsetof(T, struct_size) == 0);
  if (Status status = require(to, name, type); !status.ok()) return status;
  std::size_t size = 0;
  std::memcpy(&size, to, sizeof(size));
  if (Status status = check_struct_size<T>(size, name, type); !status.ok()) return status;
  unsigned char* bytes = reinterpret_cast<unsigned char*>(to);
  std::memset(bytes, 0, size);
  std::memcpy(bytes, &from, std::min(size, sizeof(T)));
  std::memcpy(bytes, &size, sizeof(size));
  return {};
}

/// Reads an enumeration whose values are 0 … last.
template <typename E>
Status read_enum(std::int32_t value, E last, const char* name, const char* type, E& to) {
  if (value < 0 || value > static_cast<std::int32_t>(last)) {
    return invalid(formatted("{}: {}, expected a {}, 0 to {}", name, value, type,
                             static_cast<std::int32_t>(last)));
  }
  to = static_cast<E>(value);
  return {};
}

/// Reads the pieces of a quantisation scheme; null means all automatic.
Status read_quantization(const tessera_quantization* from, Quantization& to);

/// Reads a view of a block mask; its arrays are not looked at.
Status read_view(const tessera_block_mask_view* from, const char* name, BlockMaskView& to);

}  // namespace tessera::c

#define TESSERA_C_RETURN_IF_ERROR(expression) \
  if (::tessera::Status status_ = (expression); !status_.ok()) return status_
