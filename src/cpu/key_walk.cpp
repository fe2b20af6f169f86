#include <algorithm>

#include "cpu/kernel/tile.hpp"

namespace tessera::cpu {
namespace {

/// The next segment of all keys, whichever part they belong to.
bool next_listed(KeyWalk& walk, KeySegment& segment) {
  if (!walk.blocks) {
    if (walk.begin >= walk.end) return false;
    segment = {walk.begin, walk.end, nullptr, 0, 0, 0};
    walk.begin = walk.end;
    return true;
  }
  while (walk.entry < walk.entries) {
    const std::int64_t entry = walk.entry++;
    const std::int64_t column = walk.columns[entry] * walk.block_kv;
    segment.begin = std::max(column, walk.begin);
    segment.end = std::min(column + walk.block_kv, walk.end);
    if (walk.bits_index[entry] >= 0) {
      if (segment.begin >= segment.end) continue;
      segment.bits = walk.bits + walk.bits_index[entry] * walk.block_q * walk.words_per_row;
      segment.words_per_row = walk.words_per_row;
      segment.row = walk.row;
      segment.column = column;
      return true;
    }
    // Full blocks side by side are one run of keys.
    while (walk.entry < walk.entries && walk.bits_index[walk.entry] < 0 &&
           walk.columns[walk.entry] == walk.columns[walk.entry - 1] + 1) {
      segment.end = std::min((walk.columns[walk.entry] + 1) * walk.block_kv, walk.end);
      ++walk.entry;
    }
    if (segment.begin >= segment.end) continue;
    segment.bits = nullptr;
    return true;
  }
  return false;
}

}  // namespace

bool next_segment(KeyWalk& walk, KeySegment& segment) {
  if (walk.parts == 1) return next_listed(walk, segment);
  KeySegment& rest = walk.pending;
  for (;;) {
    if (rest.begin >= rest.end && !next_listed(walk, rest)) return false;
    const std::int64_t unit = rest.begin / walk.unit;
    const std::int64_t wait = (walk.part - unit % walk.parts + walk.parts) % walk.parts;
    if (wait > 0) {
      rest.begin = (unit + wait) * walk.unit;
      continue;
    }
    segment = rest;
    segment.end = std::min(rest.end, (unit + 1) * walk.unit);
    rest.begin = segment.end;
    return true;
  }
}

}  // namespace tessera::cpu
