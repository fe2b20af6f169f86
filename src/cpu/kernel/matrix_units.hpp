// How the forward pass on matrix tiles cuts a tile's work: units of one panel and a block of keys.
#pragma once

#include "cpu/kernel/matrix_pack.hpp"
#include "cpu/kernel/read_ahead.hpp"

namespace tessera::cpu {

/// The strips of a block of keys that a panel works on, and the keys [j0, j0 + n) it sees of them.
struct PanelStrips {
  std::int64_t j0 = 0;
  std::int64_t n = 0;
  std::int64_t first = 0;  ///< Strip of the sequence.
  std::int64_t count = 0;

  TESSERA_INLINE PanelStrips() {}
  TESSERA_INLINE PanelStrips(const Panel& panel, std::int64_t begin, std::int64_t end) {
    j0 = begin > panel.begin ? begin : panel.begin;
    n = (end < panel.end ? end : panel.end) - j0;
    if (n <= 0) return;
    first = j0 / kStrip;
    count = (j0 + n + kStrip - 1) / kStrip - first;
  }
  TESSERA_INLINE std::int64_t keys() const { return count * kStrip; }
  /// Row of the strips' scores that j0 has.
  TESSERA_INLINE std::int64_t offset() const { return j0 - first * kStrip; }
};

/// Keys of one segment that a panel sees, among the keys of a unit.
struct UnitPiece {
  KeySegment segment;
  PanelStrips strips;

  TESSERA_INLINE UnitPiece() {}
};

/// A panel and the keys of one block that it sees: what the softmax works on at a time.
struct MatrixUnit {
  static constexpr int kMostStrips = 16;
  const Panel* panel = nullptr;
  int slot = 0;             ///< Of the tile.
  std::int64_t block = 0;   ///< Number of the block of keys.
  std::int64_t strips = 0;  ///< Of all pieces.
  int pieces = 0;
  UnitPiece piece[kMostStrips];
  std::int32_t places[kMostStrips];  ///< Of the strips, in the sequence.

  TESSERA_INLINE MatrixUnit() {}
  TESSERA_INLINE std::int64_t keys() const { return strips * kStrip; }
  TESSERA_INLINE bool has_keys_of(const MatrixUnit& other) const {
    return slot == other.slot && block == other.block;
  }
};

/// Gives the units of a tile: block by block, and within a block panel by panel. A block gathers up
/// to `most_pieces` segments.
template <class S>
class MatrixUnits {
 public:
  MatrixUnits() {}
  MatrixUnits(const TileBase& tile, const Panels<S>& panels, int most_pieces) {
    start(tile, panels, most_pieces);
  }
  void start(const TileBase& tile, const Panels<S>& panels, int most_pieces) {
    panels_ = &panels;
    panel_ = panels.count;
    walk_ = tile.keys;
    rest_ = {};
    most_pieces_ = most_pieces;
    most_strips_ = tile.blocking.block_kv / kStrip;
  }

  bool next(MatrixUnit& unit) {
    for (;;) {
      for (; panel_ < panels_->count; ++panel_) {
        see(panels_->at[panel_], unit);
        if (unit.pieces == 0) continue;
        ++panel_;
        return true;
      }
      if (!gather()) return false;
      panel_ = 0;
    }
  }

 private:
  bool gather() {
    ++block_;
    count_ = 0;
    std::int64_t room = most_strips_;
    while (room > 0 && count_ < most_pieces_) {
      if (rest_.begin >= rest_.end && !next_segment(walk_, rest_)) break;
      KeySegment& part = parts_[count_++];
      part = rest_;
      const std::int64_t first = rest_.begin / kStrip;
      if (part.end > (first + room) * kStrip) part.end = (first + room) * kStrip;
      room -= (part.end + kStrip - 1) / kStrip - first;
      rest_.begin = part.end;
    }
    return count_ > 0;
  }

  /// The block as the panel sees it.
  void see(const Panel& panel, MatrixUnit& unit) const {
    unit.panel = &panel;
    unit.block = block_;
    unit.strips = 0;
    unit.pieces = 0;
    for (int i = 0; i < count_; ++i) {
      const PanelStrips strips(panel, parts_[i].begin, parts_[i].end);
      if (strips.n <= 0) continue;
      UnitPiece& piece = unit.piece[unit.pieces++];
      piece.segment = parts_[i];
      piece.strips = strips;
      for (std::int64_t strip = 0; strip < strips.count; ++strip) {
        unit.places[unit.strips++] = static_cast<std::int32_t>(strips.first + strip);
      }
    }
  }

  const Panels<S>* panels_ = nullptr;
  int most_pieces_ = 1;
  std::int64_t most_strips_ = 0;
  KeyWalk walk_;
  KeySegment rest_;  ///< Of the segment that the last block ended in.
  KeySegment parts_[MatrixUnit::kMostStrips];
  int count_ = 0;
  std::int64_t block_ = 0;
  std::int64_t panel_ = 0;
};

/// K of a unit, to be read ahead.
TESSERA_INLINE void add_coming_keys(const ForwardTile& tile, const MatrixUnit& unit,
                                    ReadAhead& ahead) {
  const StripLayout layout(tile.blocking);
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(bf16));
  for (int i = 0; i < unit.pieces; ++i) {
    const PanelStrips& strips = unit.piece[i].strips;
    if (strips.first + strips.count <= tile.k_in_place) {
      const auto* k = static_cast<const bf16*>(tile.k.data) + strips.first * kStrip * tile.k.stride;
      ahead.add(k, layout.depth * kSize, tile.k.stride * kSize, strips.keys());
    } else {
      ahead.add(tile.strips + strips.first * tile.strip_elements, layout.v() * kSize,
                tile.strip_elements * kSize, strips.count);
    }
  }
}

/// V likewise.
TESSERA_INLINE void add_coming_values(const ForwardTile& tile, const MatrixUnit& unit,
                                      ReadAhead& ahead) {
  const StripLayout layout(tile.blocking);
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(bf16));
  for (int i = 0; i < unit.pieces; ++i) {
    const PanelStrips& strips = unit.piece[i].strips;
    ahead.add(tile.strips + strips.first * tile.strip_elements + layout.v(),
              kStrip * layout.depth_v * kSize, tile.strip_elements * kSize, strips.count);
  }
}

}  // namespace tessera::cpu
