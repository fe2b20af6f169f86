// How large the tiles are: from the caches and from how much work there is to share.
#pragma once

#include <string>

#include "core/problem.hpp"
#include "cpu/kernel/tile.hpp"

namespace tessera::cpu {

/// Block sizes for a problem on this machine's caches. A panel of scores and of Q stays in L1, a
/// block of K and V and the tile's Q and O in L2; tiles shrink when there would be too few to keep
/// every thread busy.
Blocking choose_blocking(const Problem& problem, const Isa& isa);

std::string to_string(const Blocking& blocking, const Isa& isa);

}  // namespace tessera::cpu
