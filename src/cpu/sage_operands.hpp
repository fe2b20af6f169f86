// Q, K and V of a run as the scheme quantises them (docs/quantised.md): statistics of all blocks of
// tokens, then means and scales of each head, then integers and 16-bit values.
#pragma once

#include <optional>

#include "cpu/attention_kernel.hpp"
#include "cpu/kernel/sage.hpp"
#include "quant/scheme.hpp"

namespace tessera::cpu {

/// Where the blocks of one side's tokens lie: head by head; packed sequences begin a new block.
class TokenBlocks {
 public:
  TokenBlocks(const Problem& problem, quant::Side side);

  std::int64_t block() const { return block_; }  ///< Tokens of a block.
  std::int64_t heads() const { return heads_; }
  std::int64_t per_head() const { return per_head_; }
  std::int64_t tokens() const { return heads_ * per_head_ * block_; }
  std::int64_t begin(const Sequence& s) const { return queries_ ? s.q_begin : s.kv_begin; }
  std::int64_t length(const Sequence& s) const { return queries_ ? s.q_len : s.kv_len; }
  /// The sequence's first block among all heads'.
  std::int64_t first(std::int64_t b, std::int64_t h, const Sequence& s) const;

  /// One block: where it stands among all, and in its sequence.
  struct Place {
    std::int64_t b = 0;
    std::int64_t h = 0;
    std::int64_t all = 0;  ///< Among the blocks of all heads.
    std::int64_t i = 0;    ///< Among those of its sequence.
    Sequence sequence;
  };
  /// Block `index` of all; nothing if no used token is in it.
  std::optional<Place> place(const TileGrid& grid, std::int64_t index) const;

 private:
  bool queries_;
  bool varlen_;
  std::int64_t batch_;
  std::int64_t block_;
  std::int64_t heads_per_batch_;
  std::int64_t heads_;
  std::int64_t per_head_;
};

class SageOperands {
 public:
  /// Reserves the memory.
  SageOperands(const Problem& problem, const SageIsa& isa, WorkspaceLayout& layout);

  std::int64_t words() const { return words_; }
  /// Quantises everything.
  void quantise(const Arguments& arguments, const TileGrid& grid) const;

  /// Points a tile that begins at query `row` of the sequence to its operands.
  void attach(const Arguments& arguments, std::int64_t b, std::int64_t h, const Sequence& s,
              std::int64_t row, SageTile& tile) const;

 private:
  /// One tensor's tokens on the way to integers or values.
  struct Side {
    Side(const Problem& problem, quant::Side side, std::int64_t columns);

    TokenBlocks blocks;
    std::int64_t columns;
    std::int64_t padded;         ///< Columns, to whole vectors of any instruction set.
    bool sums = false;           ///< Whether block sums are wanted, …
    bool extremes = false;       ///< … and extremes.
    bool block_means = false;    ///< A mean for each block instead of one for the sequence.
    std::size_t statistics = 0;  ///< [blocks][sum, low, high, magnitude][padded]
    std::size_t means = 0;       ///< [sequence][head][padded], or [blocks][padded]
    std::size_t scales = 0;      ///< [tokens]; V: [sequence][head][scale, inverse][padded]
    std::size_t whole = 0;       ///< Scale of a sequence's head: [sequence][head].
    std::size_t data = 0;        ///< Integers or values.
  };
  enum class Which { q, k, v };

  const Side& side(Which which) const;
  const TensorView& tensor(const Arguments& arguments, Which which) const;
  void reserve(Side& side, Which which, WorkspaceLayout& layout);
  template <class T>
  T* at(const Arguments& arguments, std::size_t offset, std::int64_t index) const {
    return reinterpret_cast<T*>(arguments.workspace + offset) + index;
  }
  ChannelStatistics statistics_at(const Arguments& arguments, const Side& side,
                                  std::int64_t block) const;
  float* mean_of(const Arguments& arguments, const Side& side,
                 const TokenBlocks::Place& place) const;
  TokenBlock tokens_of(const Arguments& arguments, Which which,
                       const TokenBlocks::Place& place) const;
  void mark_used(const Arguments& arguments, Which which, const TokenBlocks::Place& place,
                 TokenBlock& block) const;

  void find_statistics(const Arguments& arguments, const TileGrid& grid, Which which) const;
  void finish_head(const Arguments& arguments, Which which, const TokenBlocks::Place& first) const;
  void quantise_block(const Arguments& arguments, Which which,
                      const TokenBlocks::Place& place) const;
  void quantise_values(const Arguments& arguments, const TokenBlocks::Place& place) const;

  /// body(place) for the blocks of a side with used tokens, on all threads.
  template <class Body>
  void for_each_block(const Arguments& arguments, const TileGrid& grid, const Side& side,
                      Body&& body) const;

  const Problem& problem_;
  const SageIsa& isa_;
  float levels_;
  std::int64_t words_;
  std::int64_t value_columns_;  ///< Between rows of values.
  bool fp8_;
  DType value_dtype_;
  Side q_, k_, v_;
  std::size_t corrections_ = 0;  ///< [keys]
};

}  // namespace tessera::cpu
