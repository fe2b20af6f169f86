#include "cpu/strips.hpp"

#include <algorithm>

namespace tessera::cpu {
namespace {

/// Strips that are packed by one task.
constexpr std::int64_t kStripsPerTask = 8;

/// Whether a tensor's rows can be loaded as matrix tiles where they lie: whole tiles deep, each row
/// of a tile one cache line, and rows not so far apart that they crowd a few sets of the caches. A
/// dense backward pass reads them so often that packing them costs nothing.
bool are_operands(const Problem& problem, const TensorView& view, std::int64_t columns) {
  constexpr std::int64_t kLine = 64;
  constexpr std::int64_t kCrowded = 1024;
  const std::int64_t size = size_of(view.dtype);
  const auto whole_lines = [&](std::int64_t stride) { return stride * size % kLine == 0; };
  const std::int64_t row = view.stride[problem.varlen ? 0 : 2];
  const bool crowded = row > columns && row * size % kCrowded == 0;
  const bool read_often = problem.pass == Pass::backward && !problem.block_mask;
  return !read_often && columns % PackedStrips::kKeys == 0 && !crowded &&
         reinterpret_cast<std::uintptr_t>(view.data) % kLine == 0 && whole_lines(row) &&
         whole_lines(view.stride[problem.varlen ? 1 : 0]) &&
         (problem.varlen || whole_lines(view.stride[1]));
}

}  // namespace

PackedStrips::PackedStrips(const Problem& problem, const Isa& isa, const Blocking& blocking,
                           WorkspaceLayout& layout)
    : problem_(problem), isa_(isa), blocking_(blocking) {
  if (isa_.strip_elements == nullptr) return;
  elements_ = isa_.strip_elements(blocking_, problem_.pass == Pass::backward);
  per_head_ = problem_.varlen ? problem_.seq_kv / kKeys + problem_.batch + 1
                              : (problem_.seq_kv + kKeys - 1) / kKeys;
  offset_ = layout.add(heads() * per_head_ * elements_ * static_cast<std::int64_t>(sizeof(bf16)));
}

void PackedStrips::pack(const Arguments& arguments, const TileGrid& grid) const {
  if (!any()) return;
  const std::int64_t chunks = (per_head_ + kStripsPerTask - 1) / kStripsPerTask;
  for_each_task(*arguments.executor, problem_.threads, heads() * chunks,
                [&](int, std::int64_t task) {
                  const std::int64_t head = task / chunks;
                  const std::int64_t begin = task % chunks * kStripsPerTask;
                  const std::int64_t end = std::min(begin + kStripsPerTask, per_head_);
                  for (std::int64_t strip = begin; strip < end; ++strip) {
                    pack_strip(arguments, grid, head, strip);
                  }
                });
}

void PackedStrips::attach(const Arguments& arguments, std::int64_t b, std::int64_t h_kv,
                          const Sequence& s, TileBase& tile) const {
  if (!any()) return;
  const std::int64_t head = (problem_.varlen ? 0 : b) * problem_.heads_kv + h_kv;
  tile.strips = at(arguments, head, first(b, s));
  tile.strip_elements = elements_;
  const Inputs& in = arguments.inputs;
  const std::int64_t whole = s.kv_len / kKeys;
  if (are_operands(problem_, in.k, problem_.head_dim)) tile.k_in_place = whole;
  if (are_operands(problem_, in.v, problem_.head_dim_v)) tile.v_in_place = whole;
}

/// The last sequence whose first strip is not behind `strip`.
std::int64_t PackedStrips::sequence_of(const TileGrid& grid, std::int64_t strip) const {
  std::int64_t low = 0;
  std::int64_t high = problem_.batch;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (first(middle, grid.sequence(middle)) <= strip ? low : high) = middle;
  }
  return low;
}

/// Which of the 32 keys from `first_key` on exist and lie in a block that some query's row lists.
std::uint32_t PackedStrips::used_keys(const Inputs& inputs, std::int64_t b, std::int64_t h_kv,
                                      const Sequence& s, std::int64_t first_key) const {
  const std::int64_t count = std::clamp<std::int64_t>(s.kv_len - first_key, 0, kKeys);
  const std::uint32_t exist = count == kKeys ? ~0u : (1u << count) - 1;
  if (!problem_.block_mask || exist == 0) return exist;
  const BlockMaskView& mask = *inputs.block_mask;
  // Blocks are multiples of 16 keys.
  std::uint32_t listed = 0;
  for (std::int64_t half = 0; half < 2; ++half) {
    const std::int64_t column = (first_key + half * 16) / mask.block_kv;
    if (column >= mask.kv_blocks) continue;
    for (std::int64_t g = 0; g < problem_.group(); ++g) {
      const std::int64_t h = h_kv * problem_.group() + g;
      const std::int64_t plane = (mask.batch == 1 ? 0 : b) * mask.heads + (mask.heads == 1 ? 0 : h);
      const std::int64_t* offset = mask.transposed_offsets + plane * mask.kv_blocks + column;
      if (offset[1] > offset[0]) listed |= 0xffffu << (half * 16);
    }
  }
  return exist & listed;
}

void PackedStrips::pack_strip(const Arguments& arguments, const TileGrid& grid, std::int64_t head,
                              std::int64_t strip) const {
  const std::int64_t b = problem_.varlen ? sequence_of(grid, strip) : head / problem_.heads_kv;
  const std::int64_t h_kv = head % problem_.heads_kv;
  const Sequence s = grid.sequence(b);
  const std::int64_t first_key = (strip - first(b, s)) * kKeys;
  if (first_key >= s.kv_len) return;
  const Inputs& in = arguments.inputs;
  StripSource source;
  source.blocking = blocking_;
  source.k = rows_of(problem_, in.k, b, h_kv, s.kv_begin + first_key);
  source.v = rows_of(problem_, in.v, b, h_kv, s.kv_begin + first_key);
  source.used = used_keys(in, b, h_kv, s, first_key);
  source.backward = problem_.pass == Pass::backward;
  const bool whole = first_key + kKeys <= s.kv_len;
  source.k_in_place = whole && are_operands(problem_, in.k, problem_.head_dim);
  source.v_in_place = whole && are_operands(problem_, in.v, problem_.head_dim_v);
  isa_.pack_strip(source, at(arguments, head, strip));
}

}  // namespace tessera::cpu
