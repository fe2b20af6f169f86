// The C interface to block masks.
#include <span>
#include <utility>

#include "api/c_support.hpp"

using tessera::Alignment;
using tessera::BlockMask;
using tessera::BlockMaskView;
using tessera::BlockShape;
using tessera::DeviceType;
using tessera::formatted;
using tessera::Result;
using tessera::Status;
using namespace tessera::c;

namespace tessera::c {

Status read_view(const tessera_block_mask_view* from, const char* name, BlockMaskView& to) {
  tessera_block_mask_view view{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, name, "tessera_block_mask_view", view));
  TESSERA_C_RETURN_IF_ERROR(read_enum(view.device_type, DeviceType::cuda,
                                      formatted("{}.device_type", name).c_str(),
                                      "tessera_device_type", to.device.type));
  to.device.index = view.device_index;
  to.batch = view.batch;
  to.heads = view.heads;
  to.seq_q = view.seq_q;
  to.seq_kv = view.seq_kv;
  to.block_q = view.block_q;
  to.block_kv = view.block_kv;
  to.q_blocks = view.q_blocks;
  to.kv_blocks = view.kv_blocks;
  to.row_offsets = view.row_offsets;
  to.columns = view.columns;
  to.bits_index = view.bits_index;
  to.transposed_offsets = view.transposed_offsets;
  to.transposed_rows = view.transposed_rows;
  to.transposed_entries = view.transposed_entries;
  to.bits = view.bits;
  to.entries = view.entries;
  to.partial_blocks = view.partial_blocks;
  return {};
}

}  // namespace tessera::c

namespace {

/// Reads the shape, calls `make(BlockShape)` and hands the result to the caller as a handle.
template <typename Make>
tessera_status build(const tessera_block_shape* shape, tessera_block_mask** mask, Make&& make) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(mask, "mask", "a place for the tessera_block_mask"));
    tessera_block_shape read{};
    TESSERA_C_RETURN_IF_ERROR(read_struct(shape, "shape", "tessera_block_shape", read));
    BlockShape block_shape;
    block_shape.seq_q = read.seq_q;
    block_shape.seq_kv = read.seq_kv;
    if (read.block_q != 0) block_shape.block_q = read.block_q;
    if (read.block_kv != 0) block_shape.block_kv = read.block_kv;
    Result<BlockMask> made = make(std::as_const(block_shape));
    if (!made.ok()) return made.status();
    *mask = new tessera_block_mask{std::move(made).value()};
    return {};
  });
}

template <typename T>
Status read_array(const T* data, std::size_t count, const char* name, std::span<const T>& to) {
  if (data == nullptr && count > 0) {
    return invalid(formatted("{}: null, expected {} values", name, count));
  }
  to = {data, count};
  return {};
}

}  // namespace

tessera_status tessera_block_mask_from_blocks(const tessera_block_shape* shape, int64_t batch,
                                              int64_t heads, const uint8_t* blocks, size_t count,
                                              tessera_block_mask** mask) {
  return build(shape, mask, [&](const BlockShape& block_shape) -> Result<BlockMask> {
    std::span<const std::uint8_t> values;
    TESSERA_C_RETURN_IF_ERROR(read_array(blocks, count, "blocks", values));
    return BlockMask::from_blocks(block_shape, batch, heads, values);
  });
}

tessera_status tessera_block_mask_from_elements(const tessera_block_shape* shape, int64_t batch,
                                                int64_t heads, const uint8_t* elements,
                                                size_t count, tessera_block_mask** mask) {
  return build(shape, mask, [&](const BlockShape& block_shape) -> Result<BlockMask> {
    std::span<const std::uint8_t> values;
    TESSERA_C_RETURN_IF_ERROR(read_array(elements, count, "elements", values));
    return BlockMask::from_elements(block_shape, batch, heads, values);
  });
}

tessera_status tessera_block_mask_from_predicate(const tessera_block_shape* shape, int64_t batch,
                                                 int64_t heads, tessera_attend attend,
                                                 void* context, tessera_block_mask** mask) {
  return build(shape, mask, [&](const BlockShape& block_shape) -> Result<BlockMask> {
    if (attend == nullptr) return invalid("attend: null, expected a function");
    return BlockMask::from_predicate(
        block_shape, batch, heads,
        [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
          return attend(context, b, h, i, j) != 0;
        });
  });
}

tessera_status tessera_block_mask_from_csr(const tessera_block_shape* shape, int64_t batch,
                                           int64_t heads, const int64_t* row_offsets,
                                           size_t row_offsets_count, const int32_t* columns,
                                           size_t columns_count, const int32_t* bits_index,
                                           size_t bits_index_count, const uint32_t* bits,
                                           size_t bits_count, tessera_block_mask** mask) {
  return build(shape, mask, [&](const BlockShape& block_shape) -> Result<BlockMask> {
    std::span<const std::int64_t> offsets;
    std::span<const std::int32_t> column_values;
    std::span<const std::int32_t> index_values;
    std::span<const std::uint32_t> bit_values;
    TESSERA_C_RETURN_IF_ERROR(read_array(row_offsets, row_offsets_count, "row_offsets", offsets));
    TESSERA_C_RETURN_IF_ERROR(read_array(columns, columns_count, "columns", column_values));
    TESSERA_C_RETURN_IF_ERROR(read_array(bits_index, bits_index_count, "bits_index", index_values));
    TESSERA_C_RETURN_IF_ERROR(read_array(bits, bits_count, "bits", bit_values));
    return BlockMask::from_csr(block_shape, batch, heads, offsets, column_values, index_values,
                               bit_values);
  });
}

tessera_status tessera_block_mask_causal(const tessera_block_shape* shape, int32_t alignment,
                                         tessera_block_mask** mask) {
  return build(shape, mask, [&](const BlockShape& block_shape) -> Result<BlockMask> {
    Alignment value = Alignment::bottom_right;
    TESSERA_C_RETURN_IF_ERROR(
        read_enum(alignment, Alignment::top_left, "alignment", "tessera_alignment", value));
    return BlockMask::causal(block_shape, value);
  });
}

tessera_status tessera_block_mask_butterfly(const tessera_block_shape* shape,
                                            tessera_block_mask** mask) {
  return build(shape, mask,
               [&](const BlockShape& block_shape) { return BlockMask::butterfly(block_shape); });
}

tessera_status tessera_block_mask_local_global(const tessera_block_shape* shape, int64_t local,
                                               int64_t global, tessera_block_mask** mask) {
  return build(shape, mask, [&](const BlockShape& block_shape) {
    return BlockMask::local_global(block_shape, local, global);
  });
}

tessera_status tessera_block_mask_strided(const tessera_block_shape* shape, int64_t local,
                                          int64_t stride, tessera_block_mask** mask) {
  return build(shape, mask, [&](const BlockShape& block_shape) {
    return BlockMask::strided(block_shape, local, stride);
  });
}

tessera_status tessera_block_mask_random(const tessera_block_shape* shape, int64_t batch,
                                         int64_t heads, double density, uint64_t seed,
                                         tessera_block_mask** mask) {
  return build(shape, mask, [&](const BlockShape& block_shape) {
    return BlockMask::random(block_shape, batch, heads, density, seed);
  });
}

tessera_status tessera_block_mask_get_view(const tessera_block_mask* mask,
                                           tessera_block_mask_view* view) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(mask, "mask", "a tessera_block_mask"));
    const BlockMaskView from = mask->mask.view();
    tessera_block_mask_view to{};
    to.batch = from.batch;
    to.heads = from.heads;
    to.seq_q = from.seq_q;
    to.seq_kv = from.seq_kv;
    to.block_q = from.block_q;
    to.block_kv = from.block_kv;
    to.q_blocks = from.q_blocks;
    to.kv_blocks = from.kv_blocks;
    to.row_offsets = from.row_offsets;
    to.columns = from.columns;
    to.bits_index = from.bits_index;
    to.transposed_offsets = from.transposed_offsets;
    to.transposed_rows = from.transposed_rows;
    to.transposed_entries = from.transposed_entries;
    to.bits = from.bits;
    to.entries = from.entries;
    to.partial_blocks = from.partial_blocks;
    to.device_type = static_cast<std::int32_t>(from.device.type);
    to.device_index = from.device.index;
    return write_struct(to, "view", "tessera_block_mask_view", view);
  });
}

tessera_status tessera_block_mask_validate(const tessera_block_mask_view* view) {
  return guarded([&]() -> Status {
    BlockMaskView read;
    TESSERA_C_RETURN_IF_ERROR(read_view(view, "view", read));
    return tessera::validate(read);
  });
}

void tessera_block_mask_destroy(tessera_block_mask* mask) { delete mask; }
