// How builders put a BlockMask together, and the argument checks that they share.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "core/format.hpp"
#include "tessera/block_mask.hpp"

namespace tessera {

/// Takes a block mask's rows in order, their key blocks ascending, and adds the transpose.
class BlockMaskAssembler {
 public:
  /// `entries` is the number of blocks to come where that is known. Reserving all of it at once
  /// makes a mask that cannot fit fail here instead of filling the memory first.
  BlockMaskAssembler(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                     std::int64_t entries = 0);

  void add_full(std::int64_t key_block) { add(key_block, -1); }
  void add_partial(std::int64_t key_block, std::int32_t tile) { add(key_block, tile); }
  void end_row();

  /// Stores the element bits of a partial block; several blocks may share one tile.
  std::int32_t add_tile(std::span<const std::uint32_t> words);

  BlockMask finish() &&;

  /// Fills a mask's transposed arrays from its rows, in O(entries + blocks per axis).
  static void transpose(BlockMask& mask);

 private:
  void add(std::int64_t key_block, std::int32_t tile) {
    mask_.columns_.push_back(static_cast<std::int32_t>(key_block));
    mask_.bits_index_.push_back(tile);
  }

  BlockMask mask_;
};

namespace sparse {

/// Sequence lengths, block sizes, batch and heads are below 2^31: block indices then fit int32.
inline constexpr std::int64_t kMaxExtent = 0x7fffffff;

/// Half-open range of rows, keys or blocks.
struct Extent {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};

inline std::int64_t words_per_row(const BlockShape& shape) { return (shape.block_kv + 31) / 32; }
inline std::int64_t tile_words(const BlockShape& shape) {
  return shape.block_q * words_per_row(shape);
}

/// The elements of a block that exist: the last block of an axis may be cut short.
Extent query_rows(const BlockShape& shape, std::int64_t query_block);
Extent keys(const BlockShape& shape, std::int64_t key_block);

/// The product of non-negative factors, or nothing if it does not fit in 64 bits.
std::optional<std::int64_t> product(std::initializer_list<std::int64_t> factors);

template <typename... Args>
Status invalid(fmt::format_string<Args...> format, Args&&... args) {
  return Status(StatusCode::invalid_argument, formatted(format, std::forward<Args>(args)...));
}

/// Block sizes, sequence lengths, batch, heads, and that the number of blocks fits in 64 bits.
/// Messages name the shape's members after `prefix` ("shape." for a builder's argument).
Status check_grid(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                  std::string_view prefix);

/// row_offsets, columns and bits_index of a view whose grid, pointers and counts are good.
Status check_rows(const BlockMaskView& mask, std::string_view prefix);

/// Checks the grid, runs `build`, and turns a failed allocation into a Status.
template <typename Build>
Result<BlockMask> build_checked(const BlockShape& shape, std::int64_t batch, std::int64_t heads,
                                Build build) {
  if (Status status = check_grid(shape, batch, heads, "shape."); !status.ok()) return status;
  const auto out_of_memory = [&] {
    return Status(StatusCode::out_of_memory,
                  formatted("block mask of {} x {} x {} x {} blocks does not fit in memory; "
                            "expected larger blocks or a lower density",
                            batch, heads, shape.q_blocks(), shape.kv_blocks()));
  };
  try {
    return build();
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  } catch (const std::length_error&) {
    return out_of_memory();
  }
}

}  // namespace sparse
}  // namespace tessera
