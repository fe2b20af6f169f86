// Works that no longer fill all blocks of a launch, shared out along their keys.
//
// Equal works come in rounds of one for each block, and in the last round some blocks have none: of
// 1376 works on 132 blocks the eleventh round has 56. There the keys of each work are shared out
// over several blocks. Each leaves its sums in the workspace, and whoever comes last puts those of
// a work together, in the order of the keys.
#pragma once

#include <algorithm>
#include <limits>

namespace tessera::cuda::sm90 {

/// Which works are shared out.
struct LastRound {
  int whole = std::numeric_limits<int>::max();  ///< So many are not; the first ones.
  int parts = 1;                                ///< Of the keys of each of the others.

  int shares(int works) const { return works > whole ? (works - whole) * parts : 0; }
};

/// Of `works` on `blocks` with `key_tiles` steps each, as few of them one after another as can be.
inline LastRound last_round(int works, int blocks, int key_tiles) {
  constexpr int kMostParts = 8, kMostRounds = 2;
  constexpr int kWork = 2;   // Steps that a work costs beyond its own;
  constexpr int kShare = 8;  // what a share does, with its sums' way through memory.
  const int rest = blocks > 0 ? works % blocks : 0;
  LastRound best;
  int least = key_tiles + kWork;
  for (int parts = 2; parts <= std::min(kMostParts, key_tiles); ++parts) {
    const int rounds = (rest * parts + blocks - 1) / std::max(blocks, 1);
    const int steps = rounds * ((key_tiles + parts - 1) / parts + kShare);
    if (rest == 0 || rounds > kMostRounds || steps >= least) continue;
    best = {works - rest, parts};
    least = steps;
  }
  return best;
}

/// Where shares meet.
struct Sharing : LastRound {
  float* sums = nullptr;    ///< What each consumer of each share has accumulated.
  int* arrivals = nullptr;  ///< [work, consumer's warp]: shares that are there; 0 at first.
};

}  // namespace tessera::cuda::sm90
