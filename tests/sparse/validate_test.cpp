// validate(BlockMaskView): every kind of corruption of a good view is found and named.
#include "sparse/expand.hpp"

namespace tessera::test {
namespace {

/// The arrays of a mask, copied to where they can be spoilt.
struct Spoilt {
  BlockMaskView view;
  std::vector<std::int64_t> row_offsets;
  std::vector<std::int32_t> columns;
  std::vector<std::int32_t> bits_index;
  std::vector<std::int64_t> transposed_offsets;
  std::vector<std::int32_t> transposed_rows;
  std::vector<std::int64_t> transposed_entries;

  explicit Spoilt(const BlockMask& mask) : view(mask.view()) {
    const auto copy = [](auto& to, auto*& from, std::int64_t count) {
      to.assign(from, from + count);
      from = to.data();
    };
    const std::int64_t planes = view.batch * view.heads;
    copy(row_offsets, view.row_offsets, planes * view.q_blocks + 1);
    copy(columns, view.columns, view.entries);
    copy(bits_index, view.bits_index, view.entries);
    copy(transposed_offsets, view.transposed_offsets, planes * view.kv_blocks + 1);
    copy(transposed_rows, view.transposed_rows, view.entries);
    copy(transposed_entries, view.transposed_entries, view.entries);
  }
};

/// Two heads of 3 x 3 blocks of 16 x 32, the last of each axis cut short. Both heads:
///   + . .      entries 0          and 6
///   # # +              1 2 3          7 8 9
///   . # +              4 5            10 11
BlockMask example() {
  return made(BlockMask::from_predicate(
      {40, 70, 16, 32}, 1, 2, [](std::int64_t, std::int64_t, std::int64_t i, std::int64_t j) {
        const std::int64_t r = i / 16, c = j / 32;
        if (r == 0) return c == 0 && j <= i;
        if (r == 1) return c < 2 || j == 64;
        return c == 1 || (c == 2 && i == 39);
      }));
}

void expect(void (*spoil)(Spoilt&), const std::string& message) {
  const BlockMask mask = example();
  Spoilt spoilt(mask);
  ASSERT_TRUE(validate(spoilt.view).ok()) << validate(spoilt.view).message();
  spoil(spoilt);
  expect_invalid(validate(spoilt.view), message);
}

TEST(Validate, TheExampleIsWhatTheTestsAssume) {
  const BlockMask mask = example();
  const BlockMaskView m = mask.view();
  EXPECT_EQ(m.entries, 12);
  EXPECT_EQ(m.partial_blocks, 6);
  EXPECT_EQ(std::vector<std::int32_t>(m.columns, m.columns + 6),
            (std::vector<std::int32_t>{0, 0, 1, 2, 1, 2}));
  EXPECT_EQ(std::vector<std::int32_t>(m.transposed_rows, m.transposed_rows + 6),
            (std::vector<std::int32_t>{0, 1, 1, 2, 1, 2}));
  EXPECT_EQ(std::vector<std::int64_t>(m.transposed_entries, m.transposed_entries + 6),
            (std::vector<std::int64_t>{0, 1, 2, 4, 3, 5}));
}

TEST(Validate, EmptyMasks) {
  for (const BlockShape& s : {BlockShape{0, 0, 16, 16}, {0, 50, 16, 16}, {50, 0, 16, 16}}) {
    const BlockMask mask = made(BlockMask::causal(s));
    BlockMaskView view = mask.view();
    EXPECT_TRUE(validate(view).ok());
    view.columns = nullptr;
    view.bits_index = nullptr;
    view.transposed_rows = nullptr;
    view.transposed_entries = nullptr;
    view.bits = nullptr;
    EXPECT_TRUE(validate(view).ok());
  }
}

TEST(Validate, Sizes) {
  const std::string below = " and below 2^31";
  expect([](Spoilt& s) { s.view.batch = 0; }, "block_mask.batch: 0, expected at least 1" + below);
  expect([](Spoilt& s) { s.view.heads = -1; }, "block_mask.heads: -1, expected at least 1" + below);
  expect([](Spoilt& s) { s.view.seq_q = -1; }, "block_mask.seq_q: -1, expected at least 0" + below);
  expect([](Spoilt& s) { s.view.seq_kv = INT64_MAX; },
         "block_mask.seq_kv: 9223372036854775807, expected at least 0" + below);
  expect([](Spoilt& s) { s.view.block_q = 0; },
         "block_mask.block_q: 0, expected a positive multiple of 16 below 2^31");
  expect([](Spoilt& s) { s.view.block_kv = 40; },
         "block_mask.block_kv: 40, expected a positive multiple of 16 below 2^31");
  expect([](Spoilt& s) { s.view.q_blocks = 2; },
         "block_mask.q_blocks: 2, expected ceil(seq_q / block_q) = 3");
  expect([](Spoilt& s) { s.view.kv_blocks = 4; },
         "block_mask.kv_blocks: 4, expected ceil(seq_kv / block_kv) = 3");
  expect([](Spoilt& s) { s.view.entries = -1; },
         "block_mask.entries: -1, expected 0 to the number of blocks, 18");
  expect([](Spoilt& s) { s.view.entries = 19; },
         "block_mask.entries: 19, expected 0 to the number of blocks, 18");
  expect([](Spoilt& s) { s.view.partial_blocks = -1; },
         "block_mask.partial_blocks: -1, expected at least 0" + below);
  expect([](Spoilt& s) { s.view.partial_blocks = std::int64_t{1} << 31; },
         "block_mask.partial_blocks: 2147483648, expected at least 0" + below);
  expect([](Spoilt& s) { s.view.batch = s.view.heads = INT32_MAX; },
         "block_mask.batch * heads * q_blocks * kv_blocks: 2147483647 * 2147483647 * 3 * 3, "
         "expected a product below 2^60");
}

TEST(Validate, Pointers) {
  const std::string expected = ": null, expected an array (12 entries, 6 partial blocks)";
  expect([](Spoilt& s) { s.view.row_offsets = nullptr; }, "block_mask.row_offsets" + expected);
  expect([](Spoilt& s) { s.view.columns = nullptr; }, "block_mask.columns" + expected);
  expect([](Spoilt& s) { s.view.bits_index = nullptr; }, "block_mask.bits_index" + expected);
  expect([](Spoilt& s) { s.view.transposed_offsets = nullptr; },
         "block_mask.transposed_offsets" + expected);
  expect([](Spoilt& s) { s.view.transposed_rows = nullptr; },
         "block_mask.transposed_rows" + expected);
  expect([](Spoilt& s) { s.view.transposed_entries = nullptr; },
         "block_mask.transposed_entries" + expected);
  expect([](Spoilt& s) { s.view.bits = nullptr; }, "block_mask.bits" + expected);
}

TEST(Validate, Device) {
  expect([](Spoilt& s) { s.view.device.type = DeviceType::cuda; },
         "block_mask.device: cuda, expected cpu, to be read on the host");
}

TEST(Validate, Rows) {
  expect([](Spoilt& s) { s.row_offsets[0] = -1; }, "block_mask.row_offsets[0]: -1, expected 0");
  expect([](Spoilt& s) { s.row_offsets[2] = 7; },
         "block_mask.row_offsets[3]: 6, expected at least the one before it, 7");
  expect([](Spoilt& s) { s.row_offsets[6] = 13; },
         "block_mask.row_offsets[6]: 13, expected the number of entries, 12");
  expect([](Spoilt& s) { s.columns[3] = 3; },
         "block_mask.columns[3]: 3, expected above 1 and below kv_blocks = 3");
  expect([](Spoilt& s) { s.columns[2] = 0; },
         "block_mask.columns[2]: 0, expected above 0 and below kv_blocks = 3");
  expect([](Spoilt& s) { s.columns[0] = INT32_MIN; },
         "block_mask.columns[0]: -2147483648, expected above -1 and below kv_blocks = 3");
  expect([](Spoilt& s) { s.bits_index[3] = 6; },
         "block_mask.bits_index[3]: 6, expected -1 or below the number of tiles, 6");
  expect([](Spoilt& s) { s.bits_index[0] = -2; },
         "block_mask.bits_index[0]: -2, expected -1 or below the number of tiles, 6");
}

TEST(Validate, Transpose) {
  expect([](Spoilt& s) { s.transposed_offsets[0] = 2; },
         "block_mask.transposed_offsets[0]: 2, expected 0");
  expect([](Spoilt& s) { s.transposed_offsets[1] = 5; },
         "block_mask.transposed_offsets[2]: 4, expected at least the one before it, 5");
  expect([](Spoilt& s) { s.transposed_offsets[6] = 11; },
         "block_mask.transposed_offsets[6]: 11, expected the number of entries, 12");
  expect([](Spoilt& s) { s.transposed_rows[1] = 3; },
         "block_mask.transposed_rows[1]: 3, expected above 0 and below q_blocks = 3");
  expect([](Spoilt& s) { s.transposed_rows[1] = 0; },
         "block_mask.transposed_rows[1]: 0, expected above 0 and below q_blocks = 3");
  expect([](Spoilt& s) { s.transposed_rows[0] = -1; },
         "block_mask.transposed_rows[0]: -1, expected above -1 and below q_blocks = 3");
  const std::string first_of_head_1 = ", expected the entry of query block 0 and key block 0";
  expect([](Spoilt& s) { s.transposed_entries[6] = 0; },
         "block_mask.transposed_entries[6]: 0" + first_of_head_1);
  expect([](Spoilt& s) { s.transposed_entries[6] = 12; },
         "block_mask.transposed_entries[6]: 12" + first_of_head_1);
  expect([](Spoilt& s) { s.transposed_entries[6] = INT64_MIN; },
         "block_mask.transposed_entries[6]: -9223372036854775808" + first_of_head_1);
}

TEST(Validate, TransposeOfAnotherMask) {
  // A block moved from (2, 1) to (2, 0): both halves are good by themselves.
  expect([](Spoilt& s) { s.columns[4] = 0; },
         "block_mask.transposed_entries[3]: 4, expected the entry of query block 2 and key block "
         "1");
  // An entry that the transpose attributes to its neighbour in the row.
  expect([](Spoilt& s) { std::swap(s.transposed_entries[1], s.transposed_entries[2]); },
         "block_mask.transposed_entries[1]: 2, expected the entry of query block 1 and key block "
         "0");
  // A column that claims a block of the next one.
  expect([](Spoilt& s) { s.transposed_offsets[1] = 3; },
         "block_mask.transposed_rows[2]: 1, expected above 1 and below q_blocks = 3");
}

/// Whatever one number of an array becomes, validate() answers and reads nothing out of range, and
/// what it lets through is still a mask and its transpose.
TEST(Validate, EverySingleNumber) {
  const BlockMask mask = example();
  int rejected = 0;
  const auto spoil_each = [&](auto Spoilt::*array, auto value) {
    for (std::size_t i = 0; i < (Spoilt(mask).*array).size(); ++i) {
      Spoilt spoilt(mask);
      auto& number = (spoilt.*array)[i];
      if (number == value) continue;
      number = value;
      if (validate(spoilt.view).ok()) {
        EXPECT_TRUE(expand(spoilt.view) == expand_transposed(spoilt.view));
      } else {
        ++rejected;
      }
    }
  };
  const std::int64_t wide[] = {INT64_MIN, -2, -1, 0, 1, 2, 3, 11, 12, 13, INT64_MAX};
  const std::int32_t narrow[] = {INT32_MIN, -2, -1, 0, 1, 2, 3, 5, 6, INT32_MAX};
  for (const std::int64_t value : wide) {
    spoil_each(&Spoilt::row_offsets, value);
    spoil_each(&Spoilt::transposed_offsets, value);
    spoil_each(&Spoilt::transposed_entries, value);
  }
  for (const std::int32_t value : narrow) {
    spoil_each(&Spoilt::columns, value);
    spoil_each(&Spoilt::bits_index, value);
    spoil_each(&Spoilt::transposed_rows, value);
  }
  EXPECT_GT(rejected, 400);
}

}  // namespace
}  // namespace tessera::test
