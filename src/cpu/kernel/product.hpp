// The register tile that every matrix product of attention is made of.
//
//   C[r][lane] += Σ_d A(r, d) · B[d][lane],   R rows of broadcasts × C vectors of lanes
//
// Queries lie in the lanes: S and dP are [key][query], so that a row maximum is a plain vector max,
// O and dQ are [d][query], and K and V are read as broadcasts from the caller's own rows. Nothing
// of K or V is transposed or packed. dK and dV are [key][d] and take their broadcasts from P and
// dS.
#pragma once

#include <cstdint>

#if defined(__clang__)
#define TESSERA_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define TESSERA_UNROLL _Pragma("GCC unroll 16")
#else
#define TESSERA_UNROLL
#endif
#define TESSERA_INLINE inline __attribute__((always_inline))

namespace tessera::cpu {

/// How A(r, d) is addressed: one of its two strides is always 1.
enum class BroadcastFrom : std::uint8_t {
  depth_contiguous,  ///< a[r · stride + d]
  rows_contiguous,   ///< a[d · stride + r]
};

/// Floats of a cache line.
inline constexpr std::int64_t kLineFloats = 16;

/// Asks for `count` floats that the next register tile reads or adds to. A register tile takes
/// hundreds of cycles, out-of-order execution reaches less far: without it each begins by waiting.
TESSERA_INLINE void ask_for(const float* p, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kLineFloats) __builtin_prefetch(p + i);
}

template <class S, int R, int C>
struct Accumulator {
  typename S::V at[R][C];

  TESSERA_INLINE void clear() {
    TESSERA_UNROLL for (int r = 0; r < R; ++r) {
      TESSERA_UNROLL for (int c = 0; c < C; ++c) at[r][c] = S::zero();
    }
  }
  TESSERA_INLINE void load(const float* p, std::int64_t stride) {
    TESSERA_UNROLL for (int r = 0; r < R; ++r) {
      TESSERA_UNROLL for (int c = 0; c < C; ++c) at[r][c] = S::load(p + r * stride + c * S::kLanes);
    }
  }
  TESSERA_INLINE void store(float* p, std::int64_t stride) const {
    TESSERA_UNROLL for (int r = 0; r < R; ++r) {
      TESSERA_UNROLL for (int c = 0; c < C; ++c) S::store(p + r * stride + c * S::kLanes, at[r][c]);
    }
  }
  /// Multiplies each lane by `factor`, one vector per column.
  TESSERA_INLINE void scale(const float* factor) {
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      const typename S::V f = S::load(factor + c * S::kLanes);
      TESSERA_UNROLL for (int r = 0; r < R; ++r) at[r][c] = S::mul(at[r][c], f);
    }
  }

  template <BroadcastFrom kFrom>
  TESSERA_INLINE void multiply_add(const float* a, std::int64_t a_stride, const float* b,
                                   std::int64_t b_stride, std::int64_t depth) {
    for (std::int64_t d = 0; d < depth; ++d) {
      typename S::V row[C];
      TESSERA_UNROLL for (int c = 0; c < C; ++c) row[c] = S::load(b + c * S::kLanes);
      TESSERA_UNROLL for (int r = 0; r < R; ++r) {
        const typename S::V broadcast =
            S::set(kFrom == BroadcastFrom::depth_contiguous ? a[r * a_stride] : a[r]);
        TESSERA_UNROLL for (int c = 0; c < C; ++c) {
          at[r][c] = S::fma(broadcast, row[c], at[r][c]);
        }
      }
      a += kFrom == BroadcastFrom::depth_contiguous ? 1 : a_stride;
      b += b_stride;
    }
  }
};

/// Calls f.operator()<R>(first_row) over `rows` rows: whole register tiles, then 4, 2 and 1.
template <class S, class F>
TESSERA_INLINE void for_row_tiles(std::int64_t rows, F&& f) {
  std::int64_t r = 0;
  for (; r + S::kTileRows <= rows; r += S::kTileRows) f.template operator()<S::kTileRows>(r);
  if constexpr (S::kTileRows > 4) {
    if (r + 4 <= rows) {
      f.template operator()<4>(r);
      r += 4;
    }
  }
  if (r + 2 <= rows) {
    f.template operator()<2>(r);
    r += 2;
  }
  if (r < rows) f.template operator()<1>(r);
}

/// Calls f.operator()<C>() with C = vectors, 1 … S::kTileVectors.
template <class S, class F>
TESSERA_INLINE void with_vectors(int vectors, F&& f) {
  static_assert(S::kTileVectors >= 2 && S::kTileVectors <= 4);
  if constexpr (S::kTileVectors == 4) {
    if (vectors == 4) return f.template operator()<4>();
  }
  if constexpr (S::kTileVectors >= 3) {
    if (vectors == 3) return f.template operator()<3>();
  }
  if (vectors == 2) return f.template operator()<2>();
  return f.template operator()<1>();
}

/// `total` vectors cut into as few groups of at most S::kTileVectors as possible, of nearly equal
/// widths: a lone narrow group would leave the multipliers waiting for their own results.
template <class S>
struct VectorGroups {
  std::int64_t total;
  std::int64_t count;

  explicit VectorGroups(std::int64_t vectors)
      : total(vectors), count((vectors + S::kTileVectors - 1) / S::kTileVectors) {}
  std::int64_t first(std::int64_t g) const { return g * total / count; }
  int width(std::int64_t g) const { return static_cast<int>(first(g + 1) - first(g)); }
};

}  // namespace tessera::cpu
