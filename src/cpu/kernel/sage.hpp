// What the driver hands to the quantised kernels, and their functions. Plain structs only, like
// kernel/tile.hpp.
#pragma once

#include "cpu/kernel/tile.hpp"

namespace tessera::cpu {

/// Tokens of one head whose scales are found together: a block of keys or of queries.
struct TokenBlock {
  static constexpr std::int64_t kMostTokens = 128;

  Rows x;  ///< From the block's first token.
  std::int64_t count = 0;
  std::int64_t columns = 0;
  const float* mean = nullptr;  ///< Of each channel, zeros behind the columns; null: none.
  std::uint64_t used[2] = {};   ///< Bit i: token i takes part.
};

/// What a block adds to the statistics of each channel. Null: not wanted; the extremes are found
/// where both others are.
struct ChannelStatistics {
  float* sum = nullptr;                ///< In the scheme's order.
  std::uint32_t* magnitude = nullptr;  ///< Largest |x| as bits.
  float* low = nullptr;
  float* high = nullptr;
};

/// How V is kept. E4M3 numbers are exact in 16-bit formats.
struct ValueFormat {
  DType dtype = DType::bf16;       ///< bf16, or f16.
  const float* inverse = nullptr;  ///< To E4M3, of each channel; null: 16-bit values.
};

/// How weights are rounded: by adding and subtracting numbers whose last bit is the format's.
struct WeightFormat {
  float significand = 0;  ///< To significands in [1, 2].
  float denormal = 0;     ///< Then to the weights; 0: they have no denormals.
};

/// A tile of queries on quantised operands. Pointers to queries start at the tile's first row,
/// those to keys at the sequence's first key.
struct SageTile : ForwardTile {
  std::int64_t words = 0;                      ///< Of a row of integers.
  const std::int32_t* q_words = nullptr;       ///< [row][words]
  const float* q_scale = nullptr;              ///< [row]
  const std::int32_t* k_words = nullptr;       ///< [key][words]
  const float* k_scale = nullptr;              ///< [key]
  const std::int32_t* k_correction = nullptr;  ///< [key] what the integer sums start from.
  Rows values;                                 ///< [key][Dv]; in strips [32 keys][Dv][32 keys].
  const float* v_scale = nullptr;              ///< Of each channel; null: 1.
  const float* v_mean = nullptr;               ///< Added to O; null: 0.
  const float* q_mean = nullptr;               ///< The rows' common mean; null: 0.
  const float* k_mean = nullptr;               ///< Null: 0.
  float scale = 1;                             ///< Of the products, natural units.
  WeightFormat weights;
  float keep_scale = 1;  ///< 1 / (1 − p): of what dropout keeps, instead of the rules' own.
  bool pairs_share_scales = false;  ///< Keys 2j and 2j + 1.
};

/// The functions of one instruction set for quantised attention.
struct SageIsa {
  const Isa* exact = nullptr;  ///< The exact kernels with the same tiles.
  int ints_per_word = 0;
  bool value_strips = false;  ///< V lies in strips of 32 keys.

  void (*statistics)(const TokenBlock&, const ChannelStatistics&) = nullptr;
  /// Largest |x − mean| of each token as bits, 0 for those that take no part; room for kMostTokens.
  void (*magnitudes)(const TokenBlock&, std::uint32_t* out) = nullptr;
  /// Integers of all tokens, zeros behind the columns and for those that take no part, and the
  /// corrections if wanted.
  void (*quantise)(const TokenBlock&, const float* inverse, std::int64_t words, std::int32_t* out,
                   std::int32_t* correction) = nullptr;
  /// V of a block of 64 keys.
  void (*quantise_values)(const TokenBlock&, const ValueFormat&, std::int64_t stride,
                          void* out) = nullptr;
  std::int64_t (*scratch_floats)(const Blocking&, std::int64_t words) = nullptr;
  void (*forward)(const SageTile&, float* scratch) = nullptr;
};

extern const SageIsa kSageAvx2;
extern const SageIsa kSageAvx512;
extern const SageIsa kSageAvx512Bf16;
extern const SageIsa kSageAmx;

}  // namespace tessera::cpu
