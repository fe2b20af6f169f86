// What a team of threads does with a tile of kTileTokens rows: sums, largest magnitudes, integers
// and codes. The kernels that quantise everything in one launch differ in where they read rows, and
// in who waits for whom.
//
// A thread has eight neighbouring channels (16-bit: one vector) of tokens r modulo 8 of 64,
// kChunks neighbouring lanes have a whole row. Sums are in the scheme's order (OrderedSum).
#pragma once

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/e4m3.cuh"
#include "cuda/ptx/opaque.cuh"
#include "cuda/quant/kernels.cuh"

namespace tessera::cuda {

enum Tensor { kQ, kK, kV };

__device__ __forceinline__ const Source& source_of(const FusedTarget& to, Tensor tensor) {
  return tensor == kQ ? to.q : tensor == kK ? to.k : to.v;
}
/// Null: nothing is subtracted.
__device__ __forceinline__ float* means_of(const FusedTarget& to, Tensor tensor) {
  return tensor == kQ ? to.q_means : tensor == kK ? to.k_means : nullptr;
}

inline constexpr int kSlots = 16;  // rows that the threads of a tile span
inline constexpr int kOwn = kTileTokens / kSlots;
inline constexpr int kWords = kTileTokens / 4;  // of a channel of V

/// What the threads of a tile share.
template <int kChunks>
union Shared {
  float sums[kSlots][8 * kChunks];
  std::uint32_t largest[kSlots][8 * kChunks];
  float inverses[8 * kChunks];
  std::uint32_t groups[kSlots];
};

/// Of a tile of V, [channel][keys in fours].
template <int kChunks>
using Words = std::uint32_t[8 * kChunks * kWords];

/// The threads that are at one tile: kSlots · kChunks of a block, in kTeams teams. `Rows` is where
/// its rows are read.
template <typename T, int kChunks, int kTeams, typename Rows>
class TileTeam {
 public:
  static constexpr int kThreads = kSlots * kChunks;
  static constexpr int kColumns = 8 * kChunks;

  __device__ TileTeam(const Parameters& p, const FusedTarget& to, Shared<kChunks>& shared,
                      const Rows& from)
      : p_(p), to_(to), shared_(shared), from_(from) {}

  /// All of the team have come here.
  __device__ __forceinline__ static void sync() {
    const int team = kTeams == 1 ? 0 : static_cast<int>(threadIdx.x) / kThreads;
    ptx::sync_group(1 + team, kThreads);
  }

  /// Sums of channels over the tile's blocks of kBlock tokens, to[block][channel].
  template <int kBlock>
  __device__ __forceinline__ void sum(const Source& source, const TileRows& rows, float* to) const {
    constexpr int kTokens = kBlock / 8, kWidth = 64 / kTokens, kPieces = kColumns / kWidth;
    constexpr int kBlocks = kTileTokens / kBlock;
    const int column = thread() % kPieces * kWidth;
    const int slot = thread() / kPieces;
    const int first = rows.begin + slot / 8 * kBlock + slot % 8;
    Loaded<kWidth, kTokens> own;
    load<false>(own, source, rows, column, [first](int k) { return first + 8 * k; });
    float result[kWidth] = {};
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) result[e] = __fadd_rn(result[e], own.at(k, e));
    }
#pragma unroll
    for (int e = 0; e < kWidth; e += 4) {
      *reinterpret_cast<float4*>(&shared_.sums[slot][column + e]) = {result[e], result[e + 1],
                                                                     result[e + 2], result[e + 3]};
    }
    sync();
    for (int x = thread(); x < kBlocks * kColumns; x += kThreads) {
      const int d = x % kColumns, block = x / kColumns;
      if (d < source.columns) to[block * source.columns + d] = ordered(8 * block, d);
    }
  }

  /// Raises to[channel] to the largest magnitude of the tile's channel.
  __device__ __forceinline__ void reduce_largest(const Source& source, const TileRows& rows,
                                                 std::uint32_t* to) const {
    const int first = rows.begin + slot();
    Loaded<8, kOwn> own;
    load<false>(own, source, rows, column(), [first](int k) { return first + kSlots * k; });
    Magnitudes largest;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) largest.take(own.x[k]);
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
      *reinterpret_cast<uint4*>(&shared_.largest[slot()][column() + e]) = {
          largest.bits(e), largest.bits(e + 1), largest.bits(e + 2), largest.bits(e + 3)};
    }
    sync();
    for (int d = thread(); d < source.columns; d += kThreads) {
      std::uint32_t most = 0;
#pragma unroll
      for (int s = 0; s < kSlots; ++s) most = max(most, shared_.largest[s][d]);
      atomicMax(to + d, most);
    }
  }

  /// Means of a sequence from its blocks' sums: eight parts, a thread has four channels of one.
  /// sums(block, channel) are those of four channels.
  template <typename Sums>
  __device__ __forceinline__ void finish_mean(const Source& source, const TileRows& rows, Sums sums,
                                              float* means) const {
    constexpr int kPieces = kColumns / 4;
    const int tokens = static_cast<int>(source.queries ? ::tessera::quant::kQueryBlock
                                                       : ::tessera::quant::kKeyBlock);
    const int column = thread() % kPieces * 4;
    const int part = thread() / kPieces;
    const int blocks = (rows.length + tokens - 1) / tokens;
    float4 own = {0, 0, 0, 0};
    if (column < source.columns) {
#pragma unroll 8
      for (int block = part; block < blocks; block += 8) {
        const float4 x = sums(block, column);
        own = {__fadd_rn(own.x, x.x), __fadd_rn(own.y, x.y), __fadd_rn(own.z, x.z),
               __fadd_rn(own.w, x.w)};
      }
      *reinterpret_cast<float4*>(&shared_.sums[part][column]) = own;
    }
    sync();
    const int used = count_used(p_, source, rows, 0, rows.length);
    for (int d = thread(); d < source.columns; d += kThreads) {
      means[d] = used == 0 ? 0.0f : __fdiv_rn(ordered(0, d), static_cast<float>(used));
    }
  }

  /// Rows to integers, a scale for each of a lane's (queries) or of two neighbours' (keys) tokens.
  template <bool kSmooth>
  __device__ __forceinline__ void quantise_rows(Tensor tensor, const Source& source,
                                                const TileRows& rows, const float* means) const {
    const int set = slot() / 8, r = slot() % 8;
    const int first = rows.begin + set * 64 + r;
    Loaded<8, kOwn> own;
    load<true>(own, source, rows, column(), [first](int k) { return first + 8 * k; });
    float mean[8] = {};
    if (kSmooth && column() < source.columns) {
#pragma unroll
      for (int e = 0; e < 8; e += 4) {
        const float4 x = Rows::read_computed(reinterpret_cast<const float4*>(means + column() + e));
        mean[e] = x.x, mean[e + 1] = x.y, mean[e + 2] = x.z, mean[e + 3] = x.w;
      }
    }
    std::uint32_t largest[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = 0;
      Magnitudes magnitudes;
#pragma unroll
      for (int k = kOwn / 2 * half; k < kOwn / 2 * (half + 1); ++k) {
        if constexpr (kSmooth) {
          std::uint32_t most = 0;
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            most = max(most, magnitude_bits(__fsub_rn(own.at(k, e), mean[e])));
          }
          if (own.has(k)) largest[half] = max(largest[half], most);
        } else {
          magnitudes.take(own.x[k]);
        }
      }
      if constexpr (!kSmooth) largest[half] = magnitudes.of_all();
#pragma unroll
      for (int step = 1; step < kChunks; step *= 2) {
        largest[half] = max(largest[half], __shfl_xor_sync(~0u, largest[half], step));
      }
    }
    if (tensor == kK) {
      shared_.groups[slot()] = max(largest[0], largest[1]);
      sync();
      largest[0] = largest[1] = max(shared_.groups[slot()], shared_.groups[slot() ^ 1]);
    }
    const Scale scale[2] = {scale_of(largest[0], to_.levels), scale_of(largest[1], to_.levels)};
    const std::int64_t row = rows.plane * source.padded_rows + rows.row + set * 64;
    if (column() == 0 && tensor == kQ) {
      to_.q_scales[row / 4 + r] = scale[0].scale;
      to_.q_scales[row / 4 + 8 + r] = scale[1].scale;
    } else if (column() == 0 && r % 2 == 0) {
      to_.k_scales[row / 16 + r / 2] = scale[0].scale;
    }
    if (column() >= to_.pitch) return;
    std::int8_t* const values =
        (tensor == kQ ? to_.q_values : to_.k_values) + (row + r) * to_.pitch + column();
    own.forget();
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const float inverse = own.has(k) ? scale[k / (kOwn / 2)].inverse : 0;
      float x[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        x[e] = kSmooth ? __fsub_rn(own.at(k, e), mean[e]) : own.at(k, e);
      }
      __stcs(reinterpret_cast<uint2*>(values + std::int64_t{8} * k * to_.pitch),
             {quantised(x, 0, inverse), quantised(x, 4, inverse)});
    }
  }

  /// V to E4M3, transposed and permuted. A thread reads eight channels of the four keys that become
  /// a word of the transposed row, for two words; they meet in shared memory, [channel][key], where
  /// 16-byte vectors are permuted by the channel's number, and leave it as whole rows.
  /// `largest`: magnitudes of all channels.
  __device__ __forceinline__ void quantise_values(const Source& source, const TileRows& rows,
                                                  const std::uint32_t* largest) const {
    const std::int64_t first = rows.sequence_plane * source.columns;
    const int word = slot();
    Loaded<8, kOwn> own;
    load<true>(own, source, rows, column(),
               [&](int k) { return rows.begin + key_of(word + k / 4 * kSlots, k % 4); });
    for (int d = thread(); d < kColumns; d += kThreads) {
      Scale scale{0, 1};
      if (d < source.columns) {
        scale = scale_of(Rows::read_computed(largest + d), ::tessera::quant::kE4M3Largest);
        if (rows.begin == 0) to_.v_scales[first + d] = scale.scale;
      }
      shared_.inverses[d] = scale.inverse;
    }
    sync();
    float inverses[8];
    bool plain = own.used == (1u << kOwn) - 1;
#pragma unroll
    for (int d = 0; d < 8; d += 4) {
      const float4 x = *reinterpret_cast<const float4*>(&shared_.inverses[column() + d]);
      inverses[d] = x.x, inverses[d + 1] = x.y, inverses[d + 2] = x.z, inverses[d + 3] = x.w;
      plain = plain && x.x != 0 && x.y != 0 && x.z != 0 && x.w != 0;
    }
    if (plain) {
      write_words<true>(own, inverses);
    } else {
      write_words<false>(own, inverses);
    }
    sync();
    std::uint8_t* const to =
        to_.v_values + rows.plane * source.columns * source.padded_rows + rows.row;
    constexpr int kVectors = kWords / 4;
#pragma unroll
    for (int x = thread(); x < kColumns * kVectors; x += kThreads) {
      const int channel = x / kVectors;
      if (channel >= source.columns) break;
      const uint4 vector =
          *reinterpret_cast<uint4*>(&from_.words[place(channel, x % kVectors * 4)]);
      __stcs(reinterpret_cast<uint4*>(to + static_cast<std::int64_t>(channel) * source.padded_rows +
                                      x % kVectors * 16),
             vector);
    }
  }

 private:
  /// Elements [column, column + kWidth) of rows row(0), row(1), … of the tensor.
  template <int kWidth, int kCount>
  struct Loaded {
    static constexpr int kBytes = kWidth * static_cast<int>(sizeof(T));
    using Vector = std::conditional_t<kBytes % 16 == 0, uint4, uint2>;
    static constexpr int kVectors = kBytes / static_cast<int>(sizeof(Vector));
    Vector x[kCount][kVectors];
    unsigned used = 0;

    __device__ __forceinline__ bool has(int k) const { return (used >> k & 1) != 0; }
    __device__ __forceinline__ float at(int k, int e) const {
      return to_float(reinterpret_cast<const T*>(x[k])[e]);
    }
    /// What was computed from them is not kept: they take half the registers of f32.
    __device__ __forceinline__ void forget() {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
#pragma unroll
        for (int w = 0; w < kBytes / 4; ++w) {
          ptx::make_opaque(reinterpret_cast<std::uint32_t*>(x[k])[w]);
        }
      }
    }
  };

  /// kLast: nobody reads them again.
  template <bool kLast, int kWidth, int kCount, typename Row>
  __device__ __forceinline__ void load(Loaded<kWidth, kCount>& to, const Source& source,
                                       const TileRows& rows, int column, Row row) const {
    using Vector = typename Loaded<kWidth, kCount>::Vector;
#pragma unroll
    for (int k = 0; k < kCount; ++k) to.used |= row(k) < rows.length ? 1u << k : 0;
    if (!source.queries && p_.block_mask.row_offsets != nullptr) {
#pragma unroll 1
      for (int k = 0; k < kCount; ++k) {
        if (to.has(k) && !key_listed(p_, rows.b, rows.h, row(k))) to.used &= ~(1u << k);
      }
    }
    const auto from = from_.template at<T>(source, rows, column);
    const bool exists = column < source.columns;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const auto* vectors = reinterpret_cast<const Vector*>(from.row(row(k)));
#pragma unroll
      for (int v = 0; v < Loaded<kWidth, kCount>::kVectors; ++v) {
        to.x[k][v] = {};
        if (exists && to.has(k)) to.x[k][v] = Rows::template read<kLast>(vectors + v);
      }
    }
  }

  /// The ordered sum of eight parts.
  __device__ __forceinline__ float ordered(int first, int d) const {
    const auto part = [&](int r) { return shared_.sums[first + r][d]; };
    const float low = __fadd_rn(__fadd_rn(part(0), part(4)), __fadd_rn(part(2), part(6)));
    const float high = __fadd_rn(__fadd_rn(part(1), part(5)), __fadd_rn(part(3), part(7)));
    return __fadd_rn(low, high);
  }

  /// Largest magnitudes of eight channels. The order of 16-bit ones is that of integers.
  struct Magnitudes {
    static constexpr int kWordsOfEight = 2 * static_cast<int>(sizeof(T));
    std::uint32_t words[kWordsOfEight] = {};

    __device__ __forceinline__ void take(const uint4 (&x)[sizeof(T) / 2]) {
      const auto* from = reinterpret_cast<const std::uint32_t*>(x);
#pragma unroll
      for (int w = 0; w < kWordsOfEight; ++w) {
        if constexpr (sizeof(T) == 2) {
          words[w] = __vmaxu2(words[w], from[w] & 0x7fff7fffu);
        } else {
          words[w] = max(words[w], from[w] & 0x7fffffffu);
        }
      }
    }
    /// Of all eight, in words[0].
    __device__ __forceinline__ std::uint32_t of_all() {
      if constexpr (sizeof(T) == 2) {
        const std::uint32_t pair =
            __vmaxu2(__vmaxu2(words[0], words[1]), __vmaxu2(words[2], words[3]));
        return as_float(max(pair & 0xffffu, pair >> 16));
      } else {
        std::uint32_t most = words[0];
#pragma unroll
        for (int w = 1; w < kWordsOfEight; ++w) most = max(most, words[w]);
        return most;
      }
    }
    __device__ __forceinline__ std::uint32_t bits(int e) const {
      if constexpr (sizeof(T) == 2) {
        return as_float(words[e / 2] >> (16 * (e % 2)) & 0xffffu);
      } else {
        return words[e];
      }
    }
    __device__ __forceinline__ static std::uint32_t as_float(std::uint32_t x) {
      const auto bits = static_cast<std::uint16_t>(x);
      return __float_as_uint(to_float(reinterpret_cast<const T&>(bits)));
    }
  };

  /// kPlain: all keys are used, and no channel has a scale that is NaN.
  template <bool kPlain>
  __device__ __forceinline__ void write_words(const Loaded<8, kOwn>& own,
                                              const float (&inverses)[8]) const {
#pragma unroll
    for (int w = 0; w < 2; ++w) {
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        float y[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          y[e] = __fmul_rn(own.at(4 * w + e, d), inverses[d]);
          if (!kPlain && (!own.has(4 * w + e) || inverses[d] == 0)) y[e] = 0;
        }
        from_.words[place(column() + d, slot() + w * kSlots)] =
            ptx::pack_e4m3(y[0], y[1], y[2], y[3]);
      }
    }
  }

  /// Where word `word` of a channel lies.
  __device__ __forceinline__ static int place(int channel, int word) {
    return channel * kWords + (word ^ (channel / 8 % 8 * 4));
  }
  /// The e-th key of word `word`.
  __device__ __forceinline__ static int key_of(int word, int e) {
    return word / 4 * 16 + word % 4 * 2 + e % 2 + e / 2 * 8;
  }

  __device__ static int thread() {
    const int x = static_cast<int>(threadIdx.x);
    return kTeams == 1 ? x : x % kThreads;
  }
  __device__ static int column() { return thread() % kChunks * 8; }
  __device__ static int slot() { return thread() / kChunks; }

  const Parameters& p_;
  const FusedTarget& to_;
  Shared<kChunks>& shared_;
  const Rows from_;
};

}  // namespace tessera::cuda
