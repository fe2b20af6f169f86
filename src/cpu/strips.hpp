// K and V packed in strips of 32 keys, for the instruction sets whose products want that: once per
// key/value head and run, shared by all tiles of queries and all heads of the group.
#pragma once

#include "cpu/attention_kernel.hpp"

namespace tessera::cpu {

class PackedStrips {
 public:
  static constexpr std::int64_t kKeys = 32;

  /// Reserves the strips' memory; none where `isa` packs nothing.
  PackedStrips(const Problem& problem, const Isa& isa, const Blocking& blocking,
               WorkspaceLayout& layout);

  bool any() const { return elements_ > 0; }
  /// Strips of one key/value head: of one sequence, or of all packed ones.
  std::int64_t per_head() const { return per_head_; }
  /// The first strip of a sequence among those of its head. Packed sequences begin a new strip
  /// each.
  std::int64_t first(std::int64_t b, const Sequence& s) const {
    return problem_.varlen ? s.kv_begin / kKeys + b : 0;
  }
  /// Packs all heads.
  void pack(const Arguments& arguments, const TileGrid& grid) const;
  /// Points the tile at its head's strips.
  void attach(const Arguments& arguments, std::int64_t b, std::int64_t h_kv, const Sequence& s,
              TileBase& tile) const;

 private:
  std::int64_t heads() const { return (problem_.varlen ? 1 : problem_.batch) * problem_.heads_kv; }
  bf16* at(const Arguments& arguments, std::int64_t head, std::int64_t strip) const {
    return reinterpret_cast<bf16*>(arguments.workspace + offset_) +
           (head * per_head_ + strip) * elements_;
  }
  std::int64_t sequence_of(const TileGrid& grid, std::int64_t strip) const;
  std::uint32_t used_keys(const Inputs& inputs, std::int64_t b, std::int64_t h_kv,
                          const Sequence& s, std::int64_t first_key) const;
  void pack_strip(const Arguments& arguments, const TileGrid& grid, std::int64_t head,
                  std::int64_t strip) const;

  const Problem& problem_;
  const Isa& isa_;
  const Blocking& blocking_;
  std::int64_t elements_ = 0;  ///< Of one strip.
  std::int64_t per_head_ = 0;
  std::size_t offset_ = 0;
};

}  // namespace tessera::cpu
