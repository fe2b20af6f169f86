// From raw products to masked scores, shared by the forward and the backward kernels.
//
// A panel is kTileVectors vectors of queries or fewer; its scores for n keys are s[key][lane], row
// stride = the panel's lanes. All scores are in base-2 units (pre-multiplied by log₂ e).
#pragma once

#include "cpu/kernel/math.hpp"
#include "cpu/kernel/rows.hpp"

namespace tessera::cpu {

/// One panel of a tile.
struct Panel {
  std::int64_t lane0 = 0;  ///< First row of the tile it holds.
  std::int64_t lanes = 0;  ///< Vector width: rows padded to whole vectors.
  std::int64_t rows = 0;   ///< Used rows, at most lanes.
  int vectors = 0;
  std::int32_t begin = 0;  ///< Keys visible to any row …
  std::int32_t end = 0;
  std::int32_t all_begin = 0;  ///< … and to every row.
  std::int32_t all_end = 0;
};

template <class S>
Panel make_panel(const TileBase& tile, const VectorGroups<S>& groups, std::int64_t index) {
  Panel p;
  p.lane0 = groups.first(index) * S::kLanes;
  p.vectors = groups.width(index);
  p.lanes = static_cast<std::int64_t>(p.vectors) * S::kLanes;
  p.rows = tile.rows - p.lane0 < p.lanes ? tile.rows - p.lane0 : p.lanes;
  p.begin = p.all_begin = tile.key_begin[p.lane0];
  p.end = p.all_end = tile.key_end[p.lane0];
  for (std::int64_t i = p.lane0; i < p.lane0 + p.rows; ++i) {
    const std::int32_t begin = tile.key_begin[i];
    const std::int32_t end = tile.key_end[i];
    p.begin = begin < p.begin ? begin : p.begin;
    p.end = end > p.end ? end : p.end;
    p.all_begin = begin > p.all_begin ? begin : p.all_begin;
    p.all_end = end < p.all_end ? end : p.all_end;
  }
  return p;
}

/// A tile has at most this many panels.
inline constexpr std::int64_t kMaxPanels = 64;

/// The panels of a tile.
template <class S>
struct Panels {
  std::int64_t count = 0;
  Panel at[kMaxPanels];

  Panels() {}
  explicit Panels(const TileBase& tile) { set(tile); }
  void set(const TileBase& tile) {
    const VectorGroups<S> groups((tile.rows + S::kLanes - 1) / S::kLanes);
    count = groups.count;
    for (std::int64_t g = 0; g < count; ++g) at[g] = make_panel<S>(tile, groups, g);
  }
  const Panel* begin() const { return at; }
  const Panel* end() const { return at + count; }
};

/// s[key][lane] = Σ_d k[key][d] · q_t[d][lane] for n keys.
template <class S, int C>
void multiply_rows(const float* a, std::int64_t a_stride, const float* b_t, std::int64_t depth,
                   std::int64_t n, float* out) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  for_row_tiles<S>(n, [&]<int R>(std::int64_t j) {
    Accumulator<S, R, C> acc;
    acc.clear();
    // The rows after these are asked for a line at a time, so that as many are never under way at
    // once as to hold up everything else. Those behind the last are the next block's, or nobody's.
    const float* rows = a + j * a_stride;
    for (std::int64_t d = 0; d < depth; d += kLineFloats) {
      TESSERA_UNROLL for (int r = R; r < 2 * R; ++r) ask_for(rows + r * a_stride + d, 1);
      acc.template multiply_add<BroadcastFrom::depth_contiguous>(
          rows + d, a_stride, b_t + d * kLanes, kLanes,
          depth - d < kLineFloats ? depth - d : kLineFloats);
    }
    acc.store(out + j * kLanes, kLanes);
  });
}

/// What the score steps need besides the scores themselves.
struct ScoreContext {
  const ScoreRules* rules = nullptr;
  const std::int32_t* key_begin = nullptr;  ///< Of the panel's first lane.
  const std::int32_t* key_end = nullptr;
  Panel panel;
  std::int64_t j0 = 0;  ///< Key of s's first row.
  std::int64_t n = 0;
  float* bias = nullptr;           ///< Scratch [n][lanes].
  float* softcap_slope = nullptr;  ///< If wanted: 1 − tanh² of each score, [n][lanes].
};

/// s = softcap · tanh(s); s comes in as scale · q·k / softcap.
template <class S, int C>
void apply_softcap(const ScoreContext& x, float* s) {
  const typename S::V cap = S::set(x.rules->softcap);
  for (std::int64_t i = 0; i < x.n * C * S::kLanes; i += S::kLanes) {
    const typename S::V t = tanh<S>(S::load(s + i));
    S::store(s + i, S::mul(cap, t));
    if (x.softcap_slope != nullptr) S::store(x.softcap_slope + i, S::fnma(t, t, S::set(1)));
  }
}

template <class S, int C>
void add_bias(const ScoreContext& x, float* s) {
  constexpr std::int64_t kLanes = C * S::kLanes;
  const Rows& bias = x.rules->bias;
  Rows panel_bias = bias;
  with_pointer(bias, [&](const auto* p) { panel_bias.data = p + x.panel.lane0 * bias.stride; });
  load_transposed<S>(panel_bias, x.panel.rows, x.j0, x.n, kLog2E, x.bias, kLanes, C);
  for (std::int64_t i = 0; i < x.n * kLanes; i += S::kLanes) {
    S::store(s + i, S::add(S::load(s + i), S::load(x.bias + i)));
  }
}

/// s −= slope · |i + a − j|.
template <class S, int C>
void add_alibi(const ScoreContext& x, float* s) {
  std::int32_t position[C * S::kLanes];
  for (int lane = 0; lane < C * S::kLanes; ++lane) {
    position[lane] =
        static_cast<std::int32_t>(x.rules->row0 + x.panel.lane0 + lane + x.rules->shift - x.j0);
  }
  const typename S::V slope = S::set(x.rules->slope);
  for (std::int64_t j = 0; j < x.n; ++j) {
    const typename S::I key = S::set_int(static_cast<std::int32_t>(j));
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      float* at = s + (j * C + c) * S::kLanes;
      const typename S::I distance =
          S::abs_int(S::sub_int(S::load_int(position + c * S::kLanes), key));
      S::store(at, S::fnma(slope, S::to_float(distance), S::load(at)));
    }
  }
}

/// 8 bytes, each 0 or not, as 8 bits.
TESSERA_INLINE std::uint32_t bits_of_bytes(std::uint64_t bytes) {
  bytes |= bytes >> 4;
  bytes |= bytes >> 2;
  bytes |= bytes >> 1;
  return static_cast<std::uint32_t>((bytes & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}

/// The first min(count, 32) bytes of a boolean row as bits.
TESSERA_INLINE std::uint32_t mask_word(const std::uint8_t* row, std::int64_t count) {
  std::uint8_t bytes[32] = {};
  __builtin_memcpy(bytes, row, static_cast<std::size_t>(count < 32 ? count : 32));
  std::uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    std::uint64_t eight = 0;
    // Byte k of the row into bits 8k …, whatever the machine's byte order.
    for (int k = 0; k < 8; ++k) eight |= static_cast<std::uint64_t>(bytes[8 * i + k]) << (8 * k);
    word |= bits_of_bytes(eight) << (8 * i);
  }
  return word;
}

/// Bits [first, first + 32) of a row of `words` words; beyond the row, anything.
TESSERA_INLINE std::uint32_t block_word(const std::uint32_t* row, std::int64_t words,
                                        std::int64_t first) {
  const std::int64_t word = first / 32;
  const int shift = static_cast<int>(first % 32);
  std::uint32_t bits = row[word] >> shift;
  if (shift != 0 && word + 1 < words) bits |= row[word + 1] << (32 - shift);
  return bits;
}

/// s = −inf where the dense mask or the block's bits say no. Both lie with keys along their rows:
/// each lane collects the bits of 32 keys, and a key tests its bit in all lanes at once.
template <class S, int C>
void apply_element_masks(const ScoreContext& x, const KeySegment& segment, float* s) {
  const ScoreRules& rules = *x.rules;
  const typename S::V masked = S::set(kMinusInfinity);
  for (int c = 0; c < C; ++c) {
    for (std::int64_t j = 0; j < x.n; j += 32) {
      const std::int64_t keys = x.n - j < 32 ? x.n - j : 32;
      std::int32_t words[S::kLanes];
      std::uint32_t everywhere = ~0u;
      for (int lane = 0; lane < S::kLanes; ++lane) {
        const std::int64_t i = c * S::kLanes + lane;
        const std::int64_t row = x.panel.lane0 + (i < x.panel.rows ? i : x.panel.rows - 1);
        std::uint32_t word = ~0u;
        if (rules.has_mask) {
          word = mask_word(static_cast<const std::uint8_t*>(rules.mask.data) +
                               row * rules.mask.stride + x.j0 + j,
                           keys);
        }
        if (segment.bits != nullptr) {
          word &=
              block_word(segment.bits + (rules.row0 + row - segment.row) * segment.words_per_row,
                         segment.words_per_row, x.j0 + j - segment.column);
        }
        words[lane] = static_cast<std::int32_t>(word);
        everywhere &= word;
      }
      if (keys == 32 && everywhere == ~0u) continue;
      const typename S::U allowed = (typename S::U)S::load_int(words);
      for (std::int64_t key = 0; key < keys; ++key) {
        float* at = s + ((j + key) * C + c) * S::kLanes;
        const typename S::M keep = S::has_bit(allowed, S::set_word(1u << key));
        S::store(at, S::select(keep, S::load(at), masked));
      }
    }
  }
}

/// s = −inf outside each row's [key_begin, key_end).
template <class S, int C>
void apply_key_ranges(const ScoreContext& x, float* s) {
  const typename S::V masked = S::set(kMinusInfinity);
  for (std::int64_t j = 0; j < x.n; ++j) {
    const typename S::I key = S::set_int(static_cast<std::int32_t>(x.j0 + j));
    TESSERA_UNROLL for (int c = 0; c < C; ++c) {
      float* at = s + (j * C + c) * S::kLanes;
      const typename S::M before = S::less_int(key, S::load_int(x.key_begin + c * S::kLanes));
      const typename S::M inside = S::less_int(key, S::load_int(x.key_end + c * S::kLanes));
      S::store(at, S::select(S::both(inside, S::neither(before)), S::load(at), masked));
    }
  }
}

/// Raw products in, scores with every rule applied out.
template <class S, int C>
void finish_scores(const ScoreContext& x, const KeySegment& segment, float* s) {
  if (x.rules->softcap > 0) apply_softcap<S, C>(x, s);
  if (x.rules->has_bias) add_bias<S, C>(x, s);
  if (x.rules->alibi) add_alibi<S, C>(x, s);
  if (x.rules->has_mask || segment.bits != nullptr) apply_element_masks<S, C>(x, segment, s);
  const bool all_visible = x.j0 >= x.panel.all_begin && x.j0 + x.n <= x.panel.all_end;
  if (!all_visible) apply_key_ranges<S, C>(x, s);
}

/// Drops elements of p: p[j][lane] = kept ? p · keep_scale : 0, with keep_scale applied here.
template <class S, int C>
void apply_dropout(const ScoreContext& x, float* p) {
  const ScoreRules& rules = *x.rules;
  const typename S::V keep_scale = S::set(rules.keep_scale);
  const typename S::U threshold = S::set_word(rules.dropout_threshold);
  for (int c = 0; c < C; ++c) {
    std::int32_t row[S::kLanes];
    for (int lane = 0; lane < S::kLanes; ++lane) {
      row[lane] = static_cast<std::int32_t>(rules.row0 + x.panel.lane0 + c * S::kLanes + lane);
    }
    for (std::int64_t group = x.j0 / 4; group * 4 < x.j0 + x.n; ++group) {
      typename S::U words[4] = {S::set_word(static_cast<std::uint32_t>(group)),
                                (typename S::U)S::load_int(row), S::set_word(rules.h),
                                S::set_word(rules.b)};
      philox<S>(words, rules.dropout_key[0], rules.dropout_key[1]);
      for (int w = 0; w < 4; ++w) {
        const std::int64_t j = group * 4 + w - x.j0;
        if (j < 0 || j >= x.n) continue;
        float* at = p + (j * C + c) * S::kLanes;
        const typename S::M kept = S::at_least_word(words[w], threshold);
        S::store(at, S::select(kept, S::mul(keep_scale, S::load(at)), S::zero()));
      }
    }
  }
}

}  // namespace tessera::cpu
