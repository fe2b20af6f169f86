// The CPU: its rows, threads and memory.
#pragma once

#include "core/registry.hpp"

namespace tessera::cpu {

const Backend& backend();

}  // namespace tessera::cpu
