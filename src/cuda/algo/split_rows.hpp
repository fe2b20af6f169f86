// f32 rows as bf16 terms in memory (tile/split.cuh), made before a kernel that reads them often.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/algo/parameters.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

inline constexpr int kTerms = 3;

/// Elements of one term of a row: whole 16-byte vectors, zero behind the row's end.
constexpr int split_columns(int columns) { return (columns + 7) / 8 * 8; }

/// Sizes of k, say, as rows are split: `batch` is 1 if packed, when every
/// sequence is found by its tokens alone.
struct SplitShape {
  std::int64_t batch = 0, heads = 0, seq = 0;
  int columns = 0;

  /// A multiple of 16.
  std::size_t bytes() const {
    return static_cast<std::size_t>(batch * heads * seq) * kTerms * split_columns(columns) * 2;
  }
};

/// The terms of `shape` at `to`: three of split_columns elements in each row, one after another.
Rows split_rows_at(const SplitShape& shape, std::byte* to);

/// Fills what split_rows_at describes.
Status split_rows(const SplitShape& shape, const Rows& from, std::byte* to, cudaStream_t stream);

}  // namespace tessera::cuda
