// Block masks: which blocks of the score matrix exist at all.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tessera/block_mask_view.hpp"
#include "tessera/export.h"
#include "tessera/mask.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor.hpp"

namespace tessera {

/// What every builder needs to know: the sequence lengths and block sizes.
/// Block sizes are multiples of 16; they need not equal any kernel's tile.
struct BlockShape {
  std::int64_t seq_q = 0;
  std::int64_t seq_kv = 0;
  std::int64_t block_q = 128;
  std::int64_t block_kv = 128;

  std::int64_t q_blocks() const { return (seq_q + block_q - 1) / block_q; }
  std::int64_t kv_blocks() const { return (seq_kv + block_kv - 1) / block_kv; }
};

/// An owning block mask on the host. Immutable once built, so sharing it between threads is safe.
/// Builders validate their arguments and return StatusCode::invalid_argument with the reason.
class TESSERA_API BlockMask {
 public:
  /// From a boolean matrix of blocks, row-major [batch, heads, q_blocks, kv_blocks]; true = visit.
  /// All listed blocks are full.
  static Result<BlockMask> from_blocks(const BlockShape& shape, std::int64_t batch,
                                       std::int64_t heads, std::span<const std::uint8_t> blocks);

  /// From a boolean element mask, row-major [batch, heads, seq_q, seq_kv]; true = attend. Blocks
  /// that are all true become full, mixed ones partial, all-false ones are not listed.
  static Result<BlockMask> from_elements(const BlockShape& shape, std::int64_t batch,
                                         std::int64_t heads,
                                         std::span<const std::uint8_t> elements);

  /// From a predicate attend(b, h, i, j) over elements; classifies blocks as `from_elements` does
  /// without holding the element mask in memory.
  static Result<BlockMask> from_predicate(
      const BlockShape& shape, std::int64_t batch, std::int64_t heads,
      const std::function<bool(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>& attend);

  /// From the CSR arrays themselves (see BlockMaskView); validates everything in it.
  static Result<BlockMask> from_csr(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                                    std::span<const std::int64_t> row_offsets,
                                    std::span<const std::int32_t> columns,
                                    std::span<const std::int32_t> bits_index = {},
                                    std::span<const std::uint32_t> bits = {});

  /// Causal: blocks below the diagonal are full, blocks that it crosses are partial.
  static Result<BlockMask> causal(const BlockShape& shape,
                                  Alignment alignment = Alignment::bottom_right);

  /// Fixed butterfly (Pixelated Butterfly, Chen et al. 2021; FlashAttention 1's block-sparse
  /// pattern): query block r visits key block c if the two indices, on the next power-of-two grid,
  /// are equal or differ in exactly one bit.
  static Result<BlockMask> butterfly(const BlockShape& shape);

  /// Local + global (Longformer, BigBird): a band of `local` blocks to either side of the diagonal,
  /// and the first `global` block rows and columns in full.
  static Result<BlockMask> local_global(const BlockShape& shape, std::int64_t local,
                                        std::int64_t global);

  /// Strided (Sparse Transformer, Child et al. 2019): the last `local` blocks up to the diagonal
  /// and every `stride`-th key block counted back from it.
  static Result<BlockMask> strided(const BlockShape& shape, std::int64_t local,
                                   std::int64_t stride);

  /// Random: each row of blocks visits round(density · kv_blocks), at least 1, key blocks drawn
  /// without replacement by Philox from `seed`; the same on every machine. density in (0, 1].
  static Result<BlockMask> random(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                                  double density, std::uint64_t seed);

  /// The view kernels read; valid as long as this object is.
  BlockMaskView view() const;

  const BlockShape& shape() const { return shape_; }

 private:
  BlockMask() = default;

  BlockShape shape_;
  std::int64_t batch_ = 0;
  std::int64_t heads_ = 0;
  std::vector<std::int64_t> row_offsets_;
  std::vector<std::int32_t> columns_;
  std::vector<std::int32_t> bits_index_;
  std::vector<std::int64_t> transposed_offsets_;
  std::vector<std::int32_t> transposed_rows_;
  std::vector<std::int64_t> transposed_entries_;
  std::vector<std::uint32_t> bits_;

  friend class BlockMaskAssembler;
};

/// Checks every array of a view on the host: sizes, offsets monotone, columns in range, ascending,
/// bits_index in range, and that the transpose is the transpose. O(entries).
TESSERA_API Status validate(const BlockMaskView& mask);

}  // namespace tessera
