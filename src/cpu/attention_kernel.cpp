#include "cpu/attention_kernel.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace tessera::cpu {
namespace {

constexpr double kLog2E = 1.44269504088896340736;

const std::byte* element(const TensorView& view, std::int64_t offset) {
  return static_cast<const std::byte*>(view.data) + offset * size_of(view.dtype);
}

std::int64_t row_offset(const Problem& problem, const TensorView& view, std::int64_t b,
                        std::int64_t h, std::int64_t row) {
  if (problem.varlen) return row * view.stride[0] + h * view.stride[1];
  return b * view.stride[0] + h * view.stride[1] + row * view.stride[2];
}

std::int64_t row_stride(const Problem& problem, const TensorView& view) {
  return problem.varlen ? view.stride[0] : view.stride[2];
}

/// Rows of a score-shaped tensor (bias, mask) for one tile; size-1 dimensions repeat.
Rows score_rows(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t row) {
  const auto step = [&view](int d, std::int64_t i) {
    return view.size[d] == 1 ? 0 : i * view.stride[d];
  };
  return {element(view, step(0, b) + step(1, h) + step(2, row)), step(2, 1), view.dtype};
}

KeyWalk walk_of(const Problem& problem, const Inputs& inputs, std::int64_t b, std::int64_t h,
                std::int64_t row, KeyRange keys) {
  KeyWalk walk;
  walk.begin = keys.begin;
  walk.end = keys.end;
  if (!problem.block_mask) return walk;
  const BlockMaskView& mask = *inputs.block_mask;
  const std::int64_t block_row = row / mask.block_q;
  const std::int64_t r =
      ((mask.batch == 1 ? 0 : b) * mask.heads + (mask.heads == 1 ? 0 : h)) * mask.q_blocks +
      block_row;
  walk.blocks = true;
  walk.columns = mask.columns + mask.row_offsets[r];
  walk.bits_index = mask.bits_index + mask.row_offsets[r];
  walk.entries = mask.row_offsets[r + 1] - mask.row_offsets[r];
  walk.block_q = mask.block_q;
  walk.block_kv = mask.block_kv;
  walk.row = block_row * mask.block_q;
  walk.words_per_row = mask.words_per_row();
  walk.bits = mask.bits;
  return walk;
}

ScoreRules rules_of(const Problem& p, const Inputs& in, const DropoutStream& dropout,
                    std::int64_t b, std::int64_t h, const Sequence& s, std::int64_t row) {
  ScoreRules rules;
  rules.q_scale = static_cast<float>(p.softcap > 0 ? p.scale / p.softcap : p.scale * kLog2E);
  rules.softcap = static_cast<float>(p.softcap * kLog2E);
  rules.alibi = p.alibi;
  if (p.alibi) {
    const TensorView& slopes = in.alibi_slopes;
    const std::int64_t offset =
        slopes.rank == 2 ? b * slopes.stride[0] + h * slopes.stride[1] : h * slopes.stride[0];
    rules.slope = static_cast<float>(
        static_cast<double>(static_cast<const float*>(slopes.data)[offset]) * kLog2E);
  }
  rules.has_bias = p.bias;
  if (p.bias) rules.bias = score_rows(in.bias, b, h, row);
  rules.has_mask = p.mask;
  if (p.mask) rules.mask = score_rows(in.mask, b, h, row);
  rules.shift = s.shift;
  rules.row0 = row;
  rules.dropout = p.dropout_p > 0;
  rules.dropout_key[0] = dropout.key[0];
  rules.dropout_key[1] = dropout.key[1];
  rules.dropout_threshold = dropout.threshold;
  rules.keep_scale = dropout.keep_scale;
  rules.b = static_cast<std::uint32_t>(b);
  rules.h = static_cast<std::uint32_t>(h);
  return rules;
}

}  // namespace

TileGrid::TileGrid(const Problem& problem, const Inputs& inputs, const Blocking& blocking,
                   std::int64_t* offsets)
    : problem_(problem), inputs_(inputs), blocking_(blocking), offsets_(offsets) {
  offsets_[0] = 0;
  for (std::int64_t b = 0; b < sequences(problem_); ++b) {
    offsets_[b + 1] = offsets_[b] + tiles_of(sequence(b).q_rows, problem_, blocking_);
  }
}

std::int64_t TileGrid::tiles_of(std::int64_t rows, const Problem& problem,
                                const Blocking& blocking) {
  const auto up = [](std::int64_t n, std::int64_t d) { return (n + d - 1) / d; };
  if (!problem.block_mask) return up(rows, blocking.tile_q);
  const std::int64_t per_block = up(problem.block_q, blocking.tile_q);
  return rows / problem.block_q * per_block + up(rows % problem.block_q, blocking.tile_q);
}

std::int64_t TileGrid::most_tiles(const Problem& problem, const Blocking& blocking) {
  if (!problem.varlen) return problem.batch * tiles_of(problem.seq_q, problem, blocking);
  return tiles_of(problem.seq_q, problem, blocking) + sequences(problem) +
         (problem.block_mask ? sequences(problem) * (problem.block_q / blocking.tile_q + 1) : 0);
}

Sequence TileGrid::sequence(std::int64_t b) const {
  if (b < problem_.batch) return sequence_of(problem_, inputs_, b);
  const auto end = [this](const TensorView& cu) {
    return static_cast<std::int64_t>(
        static_cast<const std::int32_t*>(cu.data)[problem_.batch * cu.stride[0]]);
  };
  Sequence tail;
  tail.q_begin = end(inputs_.cu_seqlens_q);
  tail.kv_begin = end(inputs_.cu_seqlens_k);
  tail.q_rows = problem_.seq_q - tail.q_begin;
  tail.kv_rows = problem_.seq_kv - tail.kv_begin;
  return tail;
}

std::int64_t TileGrid::sequence_of_tile(std::int64_t index) const {
  const std::int64_t* end = offsets_ + sequences(problem_) + 1;
  const std::int64_t* begin = offsets_;
  return std::upper_bound(begin, end, index) - begin - 1;
}

TileRows TileGrid::rows(const Sequence& s, std::int64_t tile) const {
  TileRows t;
  std::int64_t limit = s.q_rows;
  if (problem_.block_mask) {
    const std::int64_t per_block = (problem_.block_q + blocking_.tile_q - 1) / blocking_.tile_q;
    const std::int64_t block = tile / per_block * problem_.block_q;
    t.begin = block + tile % per_block * blocking_.tile_q;
    limit = std::min(limit, block + problem_.block_q);
  } else {
    t.begin = tile * blocking_.tile_q;
  }
  t.rows = std::min(blocking_.tile_q, limit - t.begin);
  t.used = std::clamp<std::int64_t>(s.q_len - t.begin, 0, t.rows);
  return t;
}

Rows rows_of(const Problem& problem, const TensorView& view, std::int64_t b, std::int64_t h,
             std::int64_t row) {
  return {element(view, row_offset(problem, view, b, h, row)), row_stride(problem, view),
          view.dtype};
}

OutputRows output_rows_of(const Problem& problem, const TensorView& view, std::int64_t b,
                          std::int64_t h, std::int64_t row) {
  if (!view.present()) return {};
  return {const_cast<std::byte*>(element(view, row_offset(problem, view, b, h, row))),
          row_stride(problem, view), view.dtype};
}

RowValues row_values_of(const Problem& problem, const TensorView& view, std::int64_t b,
                        std::int64_t h, std::int64_t row) {
  if (!view.present()) return {};
  float* data = static_cast<float*>(view.data);
  if (problem.varlen) return {data + h * view.stride[0] + row * view.stride[1], view.stride[1]};
  return {data + b * view.stride[0] + h * view.stride[1] + row * view.stride[2], view.stride[2]};
}

void zero_rows(const OutputRows& rows, std::int64_t count, std::int64_t columns) {
  const std::int64_t bytes = size_of(rows.dtype);
  auto* data = static_cast<std::byte*>(rows.data);
  for (std::int64_t i = 0; i < count; ++i) {
    std::memset(data + i * rows.stride * bytes, 0, static_cast<std::size_t>(columns * bytes));
  }
}

void describe_tile(const Problem& problem, const Inputs& inputs, const Blocking& blocking,
                   const DropoutStream& dropout, std::int64_t b, std::int64_t h, const Sequence& s,
                   const TileRows& rows, std::int32_t* key_begin, std::int32_t* key_end,
                   TileBase& tile) {
  const std::int64_t h_kv = h / problem.group();
  tile.blocking = blocking;
  tile.rows = rows.used;
  tile.q = rows_of(problem, inputs.q, b, h, s.q_begin + rows.begin);
  tile.k = rows_of(problem, inputs.k, b, h_kv, s.kv_begin);
  tile.v = rows_of(problem, inputs.v, b, h_kv, s.kv_begin);
  tile.rules = rules_of(problem, inputs, dropout, b, h, s, rows.begin);
  tile.key_begin = key_begin;
  tile.key_end = key_end;
  KeyRange any{s.kv_len, 0};
  const bool positional = problem.causal || problem.window.left >= 0 || problem.window.right >= 0;
  if (!positional) {
    any = {0, s.kv_len};
    std::fill_n(key_begin, blocking.tile_q, 0);
    std::fill_n(key_end, blocking.tile_q, static_cast<std::int32_t>(s.kv_len));
  }
  for (std::int64_t i = 0; positional && i < blocking.tile_q; ++i) {
    KeyRange keys = visible_keys(problem, s, rows.begin + std::min(i, rows.used - 1));
    if (keys.empty()) keys = {0, 0};
    key_begin[i] = static_cast<std::int32_t>(keys.begin);
    key_end[i] = static_cast<std::int32_t>(keys.end);
    if (keys.empty()) continue;
    any.begin = std::min(any.begin, keys.begin);
    any.end = std::max(any.end, keys.end);
  }
  tile.keys = walk_of(problem, inputs, b, h, rows.begin, any);
}

void describe_forward_tile(const Problem& problem, const Arguments& arguments,
                           const Blocking& blocking, const DropoutStream& dropout, std::int64_t b,
                           std::int64_t h, const Sequence& s, const TileRows& rows,
                           std::int32_t* key_begin, std::int32_t* key_end, ForwardTile& tile) {
  const Inputs& in = arguments.inputs;
  describe_tile(problem, in, blocking, dropout, b, h, s, rows, key_begin, key_end, tile);
  tile.has_sink = problem.sink;
  if (problem.sink) {
    const float sink = static_cast<const float*>(in.sink.data)[h * in.sink.stride[0]];
    tile.sink = static_cast<float>(sink * kLog2E);
  }
  const std::int64_t first = s.q_begin + rows.begin;
  tile.o = output_rows_of(problem, arguments.outputs.o, b, h, first);
  const RowValues lse = row_values_of(problem, arguments.outputs.lse, b, h, first);
  tile.lse = lse.data;
  tile.lse_stride = lse.stride;
}

void zero_unused_rows(const Problem& problem, const Outputs& outputs, std::int64_t b,
                      std::int64_t h, const Sequence& s, const TileRows& rows) {
  const std::int64_t first = s.q_begin + rows.begin;
  zero_rows(output_rows_of(problem, outputs.o, b, h, first + rows.used), rows.rows - rows.used,
            problem.head_dim_v);
  const RowValues lse = row_values_of(problem, outputs.lse, b, h, first);
  if (lse.data == nullptr) return;
  for (std::int64_t i = rows.used; i < rows.rows; ++i) {
    lse.data[i * lse.stride] = -std::numeric_limits<float>::infinity();
  }
}

std::int64_t choose_parts(std::int64_t heads, int threads, std::int64_t most) {
  heads = std::max<std::int64_t>(heads, 1);
  most = std::min(most, (4 * std::int64_t{threads} + heads - 1) / heads);
  std::int64_t best = 1;
  double best_busy = 0;
  for (std::int64_t parts = 1; parts <= most && best_busy < 0.95; ++parts) {
    const std::int64_t tasks = heads * parts;
    const std::int64_t rounds = (tasks + threads - 1) / threads;
    const double busy = static_cast<double>(tasks) / static_cast<double>(rounds * threads);
    if (busy > best_busy) {
      best = parts;
      best_busy = busy;
    }
  }
  return best;
}

}  // namespace tessera::cpu
