// Forward driver for few query rows: a task is a part of the keys of one key/value head, with all
// query heads of its group. Parts leave partial results in the workspace, which are merged when all
// are done.
//
// One query of each head of a group, with rules that are the same for all of them, is a tile whose
// rows are the heads: the group then goes through the keys at once. Otherwise its heads do so one
// after the other, a run of keys at a time.
#include <algorithm>

#include "core/format.hpp"
#include "cpu/attention_kernel.hpp"
#include "cpu/cpu_info.hpp"

namespace tessera::cpu {
namespace {

constexpr std::int64_t kBlockKv = 64;
/// A part has at least this many keys: fewer are not worth another thread and a merge.
constexpr std::int64_t kLeastKeys = 256;

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

/// Whether the heads of a group can be the rows of one tile.
bool are_heads_rows(const Problem& p, const Isa& isa) {
  const bool same_rules =
      !p.alibi && !p.bias && !p.mask && !p.sink && !p.block_mask && p.dropout_p == 0;
  return p.seq_q == 1 && p.group() <= isa.lanes && same_rules;
}

class FewRowsKernel final : public Kernel {
 public:
  FewRowsKernel(const Problem& problem, const Isa& isa) : problem_(problem), isa_(isa) {
    blocking_ = {isa.lanes, kBlockKv, problem_.head_dim, problem_.head_dim_v};
    parts_ = choose_parts(problem_.batch * problem_.heads_kv, problem_.threads,
                          (problem_.seq_kv + kLeastKeys - 1) / kLeastKeys);
    heads_in_tile_ = are_heads_rows(problem_, isa_) ? problem_.group() : 1;
    tiles_of_group_ = problem_.group() / heads_in_tile_;
    // The tiles of a group read a run of keys one after the other: K and V of it stay in L2.
    const std::int64_t key_bytes =
        (problem_.head_dim + problem_.head_dim_v) * size_of(problem_.dtype);
    run_ = tiles_of_group_ == 1
               ? std::max<std::int64_t>(problem_.seq_kv, 1)
               : std::max(cpu_info().l2_bytes / 2 / key_bytes / kBlockKv * kBlockKv, kBlockKv);
    scratch_floats_ = isa_.few_rows.scratch_floats(blocking_);
    worker_bytes_ = scratch_floats_ * 4 + 2 * round_up(blocking_.tile_q * 4, 64);
    workers_ = layout_.add(problem_.threads * worker_bytes_);
    partial_floats_ = isa_.few_rows.partial_floats(blocking_, problem_.seq_q * heads_in_tile_);
    partials_ = layout_.add(problem_.batch * tiles() * parts_ * partial_floats_ * 4);
  }

  std::string config() const override {
    return formatted("few_rows block_kv={} parts={} heads_in_tile={}", blocking_.block_kv, parts_,
                     heads_in_tile_);
  }
  std::size_t workspace_bytes() const override { return layout_.bytes(); }

  Status run(const Arguments& arguments) const override {
    const DropoutStream dropout(problem_.dropout_p, arguments.inputs.seed, arguments.inputs.offset);
    const std::int64_t heads = problem_.heads_kv;
    Executor& executor = *arguments.executor;
    for_each_task(executor, problem_.threads, problem_.batch * heads * parts_,
                  [&](int worker, std::int64_t task) {
                    const std::int64_t head = task / parts_;
                    run_part(arguments, dropout, worker, head / heads, head % heads, task % parts_);
                  });
    if (parts_ == 1) return {};
    for_each_task(executor, problem_.threads, problem_.batch * tiles(),
                  [&](int worker, std::int64_t task) {
                    merge(arguments, dropout, worker, task / tiles(), task % tiles());
                  });
    return {};
  }

 private:
  /// Tiles of one sequence.
  std::int64_t tiles() const { return problem_.heads_q / heads_in_tile_; }

  float* partial(const Arguments& arguments, std::int64_t b, std::int64_t tile,
                 std::int64_t part) const {
    return reinterpret_cast<float*>(arguments.workspace + partials_) +
           ((b * tiles() + tile) * parts_ + part) * partial_floats_;
  }

  TileRows rows_of_sequence(const Sequence& s) const { return {0, s.q_rows, s.q_len}; }

  /// Describes tile number `index` of sequence b and returns the worker's scratch.
  float* describe(const Arguments& arguments, const DropoutStream& dropout, int worker,
                  std::int64_t b, std::int64_t index, const Sequence& s, ForwardTile& tile) const {
    std::byte* memory = arguments.workspace + workers_ + worker * worker_bytes_;
    auto* key_begin = reinterpret_cast<std::int32_t*>(memory + scratch_floats_ * 4);
    auto* key_end = key_begin + round_up(blocking_.tile_q, 16);
    describe_forward_tile(problem_, arguments, blocking_, dropout, b, index * heads_in_tile_, s,
                          rows_of_sequence(s), key_begin, key_end, tile);
    if (heads_in_tile_ > 1) {
      tile.rows = heads_in_tile_;
      tile.q.stride = arguments.inputs.q.stride[1];
      tile.o.stride = arguments.outputs.o.stride[1];
      if (tile.lse != nullptr) tile.lse_stride = arguments.outputs.lse.stride[1];
    }
    return reinterpret_cast<float*>(memory);
  }

  /// One part of the keys that positional masks leave, for all heads of the group.
  void run_part(const Arguments& arguments, const DropoutStream& dropout, int worker,
                std::int64_t b, std::int64_t h_kv, std::int64_t part) const {
    const Sequence s = sequence_of(problem_, arguments.inputs, b);
    const std::int64_t first = h_kv * tiles_of_group_;
    const std::int64_t end = first + tiles_of_group_;
    if (s.q_len > 0) {
      for (std::int64_t i = first; i < end; ++i) {
        isa_.few_rows.clear(blocking_, s.q_len * heads_in_tile_, partial(arguments, b, i, part));
      }
      KeyRange keys = keys_of_part(s, part);
      for (; !keys.empty(); keys.begin += run_) {
        for (std::int64_t i = first; i < end; ++i) {
          ForwardTile tile;
          float* scratch = describe(arguments, dropout, worker, b, i, s, tile);
          tile.keys.begin = std::max(tile.keys.begin, keys.begin);
          tile.keys.end = std::min({tile.keys.end, keys.begin + run_, keys.end});
          isa_.few_rows.add_keys(tile, partial(arguments, b, i, part), scratch);
        }
      }
    }
    if (parts_ > 1) return;
    for (std::int64_t i = first; i < end; ++i) merge(arguments, dropout, worker, b, i);
  }

  /// Positional masks leave one range to the rows together; parts are equal shares of it.
  KeyRange keys_of_part(const Sequence& s, std::int64_t part) const {
    KeyRange all{s.kv_len, 0};
    for (std::int64_t i = 0; i < s.q_len; ++i) {
      const KeyRange keys = visible_keys(problem_, s, i);
      if (keys.empty()) continue;
      all.begin = std::min(all.begin, keys.begin);
      all.end = std::max(all.end, keys.end);
    }
    if (all.empty()) return {};
    const std::int64_t share =
        round_up((all.end - all.begin + parts_ - 1) / parts_, blocking_.block_kv);
    return {all.begin + part * share, std::min(all.begin + (part + 1) * share, all.end)};
  }

  void merge(const Arguments& arguments, const DropoutStream& dropout, int worker, std::int64_t b,
             std::int64_t index) const {
    const Sequence s = sequence_of(problem_, arguments.inputs, b);
    for (std::int64_t i = 0; i < heads_in_tile_; ++i) {
      zero_unused_rows(problem_, arguments.outputs, b, index * heads_in_tile_ + i, s,
                       rows_of_sequence(s));
    }
    if (s.q_len == 0) return;
    ForwardTile tile;
    describe(arguments, dropout, worker, b, index, s, tile);
    isa_.few_rows.merge(tile, partial(arguments, b, index, 0), partial_floats_, parts_);
  }

  Problem problem_;
  const Isa& isa_;
  Blocking blocking_;
  WorkspaceLayout layout_;
  std::int64_t parts_ = 1;
  std::int64_t heads_in_tile_ = 1;  ///< Query heads that are rows of one tile.
  std::int64_t tiles_of_group_ = 1;
  std::int64_t run_ = 0;  ///< Keys that the tiles of a group go through before the next ones.
  std::int64_t scratch_floats_ = 0;
  std::int64_t worker_bytes_ = 0;
  std::int64_t partial_floats_ = 0;
  std::size_t workers_ = 0;
  std::size_t partials_ = 0;
};

}  // namespace

bool are_few_rows(const Problem& problem, const Isa& isa) {
  return !problem.varlen && 2 * problem.seq_q <= isa.lanes;
}

std::unique_ptr<Kernel> make_few_rows(const Problem& problem, const Isa& isa) {
  return std::make_unique<FewRowsKernel>(problem, isa);
}

}  // namespace tessera::cpu
