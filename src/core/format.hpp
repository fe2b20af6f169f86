// Messages in {fmt}'s syntax, checked when compiling. The library has {fmt} without its own library
// (CMakeLists.txt), so that each object that calls fmt::format would compile all of it, four
// seconds of a core; these calls share one object's.
#pragma once

#include <fmt/format.h>

#include <string>

namespace tessera {

/// fmt::vformat.
std::string format_arguments(fmt::string_view format, fmt::format_args arguments);

/// fmt::format.
template <typename... Args>
std::string formatted(fmt::format_string<Args...> format, Args&&... args) {
  return format_arguments(format, fmt::make_format_args(args...));
}

}  // namespace tessera
