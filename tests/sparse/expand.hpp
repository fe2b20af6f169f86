// Block masks as plain boolean matrices, and a check of a mask against one.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "tessera/block_mask.hpp"

namespace tessera {

inline void PrintTo(const BlockShape& s, std::ostream* out) {
  *out << s.seq_q << "x" << s.seq_kv << " in " << s.block_q << "x" << s.block_kv;
}

}  // namespace tessera

namespace tessera::test {

/// Row-major [batch, heads, seq_q, seq_kv], true = attend.
using Dense = std::vector<std::uint8_t>;

inline std::vector<BlockShape> ragged_shapes() {
  std::vector<BlockShape> shapes;
  for (const auto& [seq_q, seq_kv] :
       {std::pair{1, 1}, {113, 203}, {799, 3}, {3, 799}, {1023, 1024}, {0, 64}, {64, 0}, {0, 0}}) {
    for (const auto& [block_q, block_kv] : {std::pair{16, 16},
                                            {32, 32},
                                            {64, 64},
                                            {128, 128},
                                            {48, 48},
                                            {16, 64},
                                            {128, 48},
                                            {48, 32}}) {
      shapes.push_back({seq_q, seq_kv, block_q, block_kv});
    }
  }
  return shapes;
}

inline std::int64_t dense_size(const BlockMaskView& m) {
  return m.batch * m.heads * m.seq_q * m.seq_kv;
}

inline std::int64_t words_per_tile(const BlockMaskView& m) {
  return m.block_q * ((m.block_kv + 31) / 32);
}

inline bool bit_of(const BlockMaskView& m, std::int64_t entry, std::int64_t i, std::int64_t j) {
  const std::uint32_t* tile = m.bits + m.bits_index[entry] * words_per_tile(m);
  return tile[i * ((m.block_kv + 31) / 32) + j / 32] >> (j % 32) & 1;
}

/// Writes the elements of one entry, of the plane (b, h) and the block (r, c), into `dense`.
inline void expand_entry(const BlockMaskView& m, std::int64_t entry, std::int64_t plane,
                         std::int64_t r, std::int64_t c, Dense& dense) {
  for (std::int64_t i = r * m.block_q; i < (r + 1) * m.block_q && i < m.seq_q; ++i) {
    for (std::int64_t j = c * m.block_kv; j < (c + 1) * m.block_kv && j < m.seq_kv; ++j) {
      const bool attended =
          m.bits_index[entry] < 0 || bit_of(m, entry, i - r * m.block_q, j - c * m.block_kv);
      if (attended) ++dense[(plane * m.seq_q + i) * m.seq_kv + j];
    }
  }
}

/// How often each element is listed, by rows.
inline Dense expand(const BlockMaskView& m) {
  Dense dense(dense_size(m), 0);
  for (std::int64_t plane = 0; plane < m.batch * m.heads; ++plane) {
    for (std::int64_t r = 0; r < m.q_blocks; ++r) {
      const std::int64_t row = plane * m.q_blocks + r;
      for (std::int64_t e = m.row_offsets[row]; e < m.row_offsets[row + 1]; ++e) {
        expand_entry(m, e, plane, r, m.columns[e], dense);
      }
    }
  }
  return dense;
}

/// The same by the transpose.
inline Dense expand_transposed(const BlockMaskView& m) {
  Dense dense(dense_size(m), 0);
  for (std::int64_t plane = 0; plane < m.batch * m.heads; ++plane) {
    for (std::int64_t c = 0; c < m.kv_blocks; ++c) {
      const std::int64_t column = plane * m.kv_blocks + c;
      for (std::int64_t t = m.transposed_offsets[column]; t < m.transposed_offsets[column + 1];
           ++t) {
        expand_entry(m, m.transposed_entries[t], plane, m.transposed_rows[t], c, dense);
      }
    }
  }
  return dense;
}

/// Calls visit(plane, r, c, existing, attended) for every block of a dense mask.
template <typename Visit>
void for_each_block(const BlockMaskView& m, const Dense& dense, Visit visit) {
  for (std::int64_t plane = 0; plane < m.batch * m.heads; ++plane) {
    for (std::int64_t r = 0; r < m.q_blocks; ++r) {
      for (std::int64_t c = 0; c < m.kv_blocks; ++c) {
        std::int64_t existing = 0;
        std::int64_t attended = 0;
        for (std::int64_t i = r * m.block_q; i < (r + 1) * m.block_q && i < m.seq_q; ++i) {
          for (std::int64_t j = c * m.block_kv; j < (c + 1) * m.block_kv && j < m.seq_kv; ++j) {
            ++existing;
            attended += dense[(plane * m.seq_q + i) * m.seq_kv + j];
          }
        }
        visit(plane, r, c, existing, attended);
      }
    }
  }
}

/// The entry of a block, or −1 if it is not listed.
inline std::int64_t entry_of(const BlockMaskView& m, std::int64_t plane, std::int64_t r,
                             std::int64_t c) {
  const std::int64_t row = plane * m.q_blocks + r;
  for (std::int64_t e = m.row_offsets[row]; e < m.row_offsets[row + 1]; ++e) {
    if (m.columns[e] == c) return e;
  }
  return -1;
}

/// Whether any bit of an entry's tile lies beyond the sequence or the block.
inline bool bits_beyond(const BlockMaskView& m, std::int64_t entry, std::int64_t r,
                        std::int64_t c) {
  for (std::int64_t i = 0; i < m.block_q; ++i) {
    for (std::int64_t j = 0; j < (m.block_kv + 31) / 32 * 32; ++j) {
      const bool exists =
          r * m.block_q + i < m.seq_q && j < m.block_kv && c * m.block_kv + j < m.seq_kv;
      if (!exists && bit_of(m, entry, i, j)) return true;
    }
  }
  return false;
}

/// The mask is legal, lists exactly the elements of `dense` both ways round, lists no block without
/// elements, calls a block full if and only if all of it is there, and has no bits out of range.
inline void expect_mask(const BlockMask& mask, const Dense& dense) {
  const BlockMaskView m = mask.view();
  const Status status = validate(m);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(m.device == Device{});
  EXPECT_EQ(m.q_blocks, (m.seq_q + m.block_q - 1) / m.block_q);
  EXPECT_EQ(m.kv_blocks, (m.seq_kv + m.block_kv - 1) / m.block_kv);
  ASSERT_EQ(dense.size(), static_cast<std::size_t>(dense_size(m)));
  EXPECT_TRUE(expand(m) == dense);
  EXPECT_TRUE(expand_transposed(m) == dense);
  std::int64_t listed = 0;
  int wrong = 0;
  for_each_block(m, dense,
                 [&](std::int64_t plane, std::int64_t r, std::int64_t c, std::int64_t existing,
                     std::int64_t attended) {
                   const std::int64_t e = entry_of(m, plane, r, c);
                   listed += e >= 0;
                   const bool good =
                       e < 0 ? attended == 0
                             : attended > 0 && (m.bits_index[e] < 0) == (attended == existing);
                   if (!good || (e >= 0 && m.bits_index[e] >= 0 && bits_beyond(m, e, r, c))) {
                     ++wrong;
                   }
                 });
  EXPECT_EQ(wrong, 0) << "blocks wrongly listed, wrongly classified or with bits out of range";
  EXPECT_EQ(listed, m.entries);
  const std::int64_t blocks = m.batch * m.heads * m.q_blocks * m.kv_blocks;
  EXPECT_DOUBLE_EQ(m.density(), blocks == 0 ? 1.0 : static_cast<double>(listed) / blocks);
}

/// The value of a result that must be there.
inline BlockMask made(Result<BlockMask> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  if (!result.ok()) std::abort();
  return std::move(result).value();
}

inline void expect_invalid(const Status& status, const std::string& message) {
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(status.message(), message);
}

}  // namespace tessera::test
