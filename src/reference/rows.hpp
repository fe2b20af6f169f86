// The reference's row: the executable specification that every other row is tested against.
#pragma once

#include "core/registry.hpp"

namespace tessera::reference {

extern const Row kReferenceRow;

}  // namespace tessera::reference
