// Positional masks: causal, sliding window, and how queries line up with keys.
#pragma once

#include <cstdint>

namespace tessera {

/// Where query i stands on the key axis: at key position i + a. Causal masks, windows and ALiBi all
/// use the same a. Lengths are the sequence's own (used lengths when those are given).
enum class Alignment : std::uint8_t {
  bottom_right = 0,  ///< a = Skv − Sq: the last query stands at the last key (the default).
  top_left = 1,      ///< a = 0: the first query stands at the first key.
};

/// Sliding window: key j is visible to query i if i + a − left ≤ j ≤ i + a + right.
/// −1 leaves a side unbounded; both −1 (the default) is no window.
struct Window {
  std::int64_t left = -1;
  std::int64_t right = -1;
};

}  // namespace tessera
