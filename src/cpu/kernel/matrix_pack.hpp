// Operands of the matrix products, packed from the caller's bf16 rows.
//
// K and V once per key/value head, before any tile runs, in strips of 32 keys that every tile of
// queries and every head of the group then reads:
//
//   forward    K [32 keys][D], Vᵀ [Dv][32 keys]                        D, Dv padded to 32
//   backward   K [32 keys][D], V [32 keys][Dv], Kᵀ [D][32 keys]
//
// Rows of K, and of V in the backward pass, are operands as they lie, if they are aligned and whole
// tiles deep; then they are not packed, but for a last strip that is not full.
//
// Q and dO when a tile of queries starts. What pads a head dim, a strip or a vector is zero, and so
// is a key that no query may see: whatever the caller has there never meets a product.
#pragma once

#include "cpu/kernel/matrix_product.hpp"

namespace tessera::cpu {

/// Where the parts of a strip lie, in elements from its start.
struct StripLayout {
  std::int64_t depth;    ///< head_dim padded to whole tiles.
  std::int64_t depth_v;  ///< head_dim_v likewise.

  TESSERA_INLINE explicit StripLayout(const Blocking& b)
      : depth(whole_strips(b.head_dim)), depth_v(whole_strips(b.head_dim_v)) {}
  TESSERA_INLINE std::int64_t v() const { return kStrip * depth; }
  TESSERA_INLINE std::int64_t k_t() const { return kStrip * (depth + depth_v); }
  TESSERA_INLINE std::int64_t elements(bool backward) const {
    return kStrip * (depth + depth_v + (backward ? depth : 0));
  }
};

/// 32 elements of a row as 16 words, zeros behind the first `count` of them.
template <class S>
TESSERA_INLINE typename S::V load_words(const bf16* p, std::int64_t count) {
  if (count >= 2 * S::kLanes) return S::load(reinterpret_cast<const float*>(p));
  bf16 buffer[2 * S::kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return S::load(reinterpret_cast<const float*>(buffer));
}

/// A vector's worth of a row from column d on, to be read in whole: the row itself, or a copy in
/// `buffer` with zeros for what is not there.
template <class S>
struct RowPiece {
  bf16 buffer[S::kLanes];

  TESSERA_INLINE const bf16* at(const bf16* row, std::int64_t d, std::int64_t columns,
                                bool exists) {
    if (exists && columns - d >= S::kLanes) return row + d;
    for (std::int64_t i = 0; i < S::kLanes; ++i) {
      buffer[i] = exists && d + i < columns ? row[d + i] : bf16{};
    }
    return buffer;
  }
};

TESSERA_INLINE bool has_key(std::uint32_t used, int key) { return (used >> key & 1u) != 0; }

/// out[key][d] = in[key][d], for one strip.
template <class S>
void pack_rows(const Rows& in, std::int64_t columns, std::uint32_t used, bf16* out,
               std::int64_t depth) {
  const auto* data = static_cast<const bf16*>(in.data);
  for (int key = 0; key < kStrip; ++key) {
    for (std::int64_t d = 0; d < depth; d += kStrip) {
      const typename S::V words =
          has_key(used, key) ? load_words<S>(data + key * in.stride + d, columns - d) : S::zero();
      S::store(reinterpret_cast<float*>(out + key * depth + d), words);
    }
  }
}

/// out[d][key] = in[key][d], for one strip: pairs of keys are transposed as words.
template <class S>
void pack_columns(const Rows& in, std::int64_t columns, std::uint32_t used, bf16* out,
                  std::int64_t depth) {
  const auto* data = static_cast<const bf16*>(in.data);
  for (std::int64_t d = 0; d < depth; d += S::kLanes) {
    RowPiece<S> even, odd;
    typename S::V block[S::kLanes];
    for (int key = 0; key < kStrip; key += 2) {
      const bf16* row = data + key * in.stride;
      block[key / 2] = S::zip(even.at(row, d, columns, has_key(used, key)),
                              odd.at(row + in.stride, d, columns, has_key(used, key + 1)));
    }
    S::transpose(block);
    for (int i = 0; i < S::kLanes; ++i) {
      S::store(reinterpret_cast<float*>(out + (d + i) * kStrip), block[i]);
    }
  }
}

/// One strip of K and V.
template <class S>
void pack_strip(const StripSource& from, bf16* out) {
  const StripLayout layout(from.blocking);
  const std::int64_t head_dim = from.blocking.head_dim;
  const std::int64_t head_dim_v = from.blocking.head_dim_v;
  if (!from.k_in_place) pack_rows<S>(from.k, head_dim, from.used, out, layout.depth);
  if (from.backward) {
    if (!from.v_in_place) {
      pack_rows<S>(from.v, head_dim_v, from.used, out + layout.v(), layout.depth_v);
    }
    pack_columns<S>(from.k, head_dim, from.used, out + layout.k_t(), layout.depth);
  } else {
    pack_columns<S>(from.v, head_dim_v, from.used, out + layout.v(), layout.depth_v);
  }
}

/// Rows of K by strips, from the sequence's first key.
TESSERA_INLINE StripsOfRows k_strips(const TileBase& tile) {
  const StripLayout layout(tile.blocking);
  return {{static_cast<const bf16*>(tile.k.data), tile.k.stride, kStrip * tile.k.stride},
          {tile.strips, layout.depth, tile.strip_elements},
          tile.k_in_place};
}

/// Rows of V likewise: the backward pass's alone.
TESSERA_INLINE StripsOfRows v_strips(const TileBase& tile) {
  const StripLayout layout(tile.blocking);
  return {{static_cast<const bf16*>(tile.v.data), tile.v.stride, kStrip * tile.v.stride},
          {tile.strips + layout.v(), layout.depth_v, tile.strip_elements},
          tile.v_in_place};
}

template <class S>
std::int64_t strip_elements(const Blocking& blocking, bool backward) {
  return StripLayout(blocking).elements(backward);
}

/// B with the head dim as depth: out[d / 2][lane][d % 2] = ± in[lane][d] for a panel's lanes; zeros
/// in lanes past `rows`.
template <class S>
void pack_depth_pairs(const Rows& in, std::int64_t rows, std::int64_t columns, bool negate,
                      bf16* out, std::int64_t depth, std::int64_t lanes) {
  const auto* data = static_cast<const bf16*>(in.data);
  const typename S::U sign = S::set_word(negate ? 0x80008000u : 0u);
  for (std::int64_t lane0 = 0; lane0 < lanes; lane0 += S::kLanes) {
    for (std::int64_t d = 0; d < depth; d += 2 * S::kLanes) {
      typename S::V block[S::kLanes];
      for (int r = 0; r < S::kLanes; ++r) {
        block[r] = lane0 + r < rows && d < columns
                       ? load_words<S>(data + (lane0 + r) * in.stride + d, columns - d)
                       : S::zero();
        block[r] = (typename S::V)S::xor_word((typename S::U)block[r], sign);
      }
      S::transpose(block);
      for (int r = 0; r < S::kLanes; ++r) {
        S::store(reinterpret_cast<float*>(out + (d + 2 * r) * lanes + 2 * lane0), block[r]);
      }
    }
  }
}

/// B with the queries as depth: out[row / 2][d][row % 2] = in[row][d], `padded_rows` of them, zeros
/// behind `rows`.
template <class S>
void pack_row_pairs(const Rows& in, std::int64_t rows, std::int64_t columns, bf16* out,
                    std::int64_t padded_rows, std::int64_t depth) {
  const auto* data = static_cast<const bf16*>(in.data);
  for (std::int64_t row = 0; row < padded_rows; row += 2) {
    for (std::int64_t d = 0; d < depth; d += S::kLanes) {
      RowPiece<S> even, odd;
      const bf16* at = data + row * in.stride;
      S::store(reinterpret_cast<float*>(out + row * depth + 2 * d),
               S::zip(even.at(at, d, columns, row < rows),
                      odd.at(at + in.stride, d, columns, row + 1 < rows)));
    }
  }
}

}  // namespace tessera::cpu
