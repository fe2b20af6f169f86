// Backward driver.
//
// With enough heads a task is one key/value head of one sequence. With fewer heads than threads
// need, a head's keys and its query tiles are each dealt out to `parts`, and the parts meet in
// turns: in turn t, part p works its own keys against the tiles of part (p + t) mod parts. At any
// moment every key and every query row then belongs to one task, which adds to f32 sums in place
// (the caller's own d_q, d_k, d_v where they are f32): no copies per thread, no atomic additions,
// and the order of every sum is fixed by the thread count, never by timing. A turn of a part waits
// for two others only, that of the same part before it and that of the part which had its tiles, so
// turns of unequal length, as block masks make them, do not leave threads idle.
#include <algorithm>
#include <cstring>

#include "cpu/attention_kernel.hpp"
#include "cpu/strips.hpp"
#include "cpu/turns.hpp"

namespace tessera::cpu {
namespace {

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

/// A head has no more parts than tiles of queries, or blocks of keys.
std::int64_t most_parts(const Problem& p, const Blocking& blocking) {
  const std::int64_t tiles = (p.seq_q + blocking.tile_q - 1) / blocking.tile_q * p.group();
  const std::int64_t units = (p.seq_kv + blocking.block_kv - 1) / blocking.block_kv;
  return std::min(tiles, units);
}

/// Where one of dQ, dK, dV accumulates in f32.
struct Sums {
  std::int64_t columns = 0;
  std::int64_t padded = 0;
  bool in_place = false;           ///< In the caller's tensor.
  std::int64_t buffer_floats = 0;  ///< Otherwise in buffers of the workspace.
  std::size_t offset = 0;          ///< Of the first buffer.
};

class BackwardKernel final : public Kernel {
 public:
  BackwardKernel(const Problem& problem, const Isa& isa)
      : problem_(problem),
        isa_(isa),
        blocking_(choose_blocking(problem, isa)),
        strips_(problem_, isa_, blocking_, layout_) {
    // Under a block mask turns differ in length: with two to a thread there is always one to take.
    parts_ = choose_parts(problem_.batch * problem_.heads_kv,
                          problem_.block_mask ? 2 * problem_.threads : problem_.threads,
                          most_parts(problem_, blocking_));
    grid_ = layout_.add((TileGrid::sequences(problem_) + 1) * sizeof(std::int64_t));
    const std::int64_t sink_floats =
        problem_.sink_gradient ? TileGrid::most_tiles(problem_, blocking_) * problem_.heads_q : 0;
    sink_parts_ = layout_.add(sink_floats * 4);
    if (parts_ > 1) {
      turns_ = layout_.add(TileGrid::sequences(problem_) * problem_.heads_kv * parts_ *
                           static_cast<std::int64_t>(sizeof(PartState)));
    }
    worker_floats_ = isa_.backward_scratch_floats(blocking_);
    if (problem_.bias_gradient) worker_floats_ += 2 * blocking_.tile_q * bias_stride();
    ranges_bytes_ = (blocking_.tile_q * 4 + 63) / 64 * 64;
    worker_bytes_ = worker_floats_ * 4 + 2 * kSlots * ranges_bytes_;
    workers_ = layout_.add(problem_.threads * worker_bytes_);
    const auto plan_sums = [&](std::int64_t columns, std::int64_t rows, std::int64_t buffers) {
      Sums sums;
      sums.columns = columns;
      sums.padded = round_up(columns, isa_.lanes);
      sums.in_place = problem_.dtype == DType::f32 && columns % isa_.lanes == 0;
      sums.buffer_floats = sums.in_place ? 0 : rows * sums.padded;
      sums.offset = layout_.add(buffers * sums.buffer_floats * 4);
      return sums;
    };
    // A head in one part is finished by one task, whose worker's buffer serves the next head too.
    // Any worker may get any task, those of the tokens behind the last sequence included.
    const std::int64_t heads = TileGrid::sequences(problem_) * problem_.heads_kv;
    const std::int64_t buffers = parts_ > 1 ? buffered_sequences() * problem_.heads_kv
                                            : std::min<std::int64_t>(problem_.threads, heads);
    // Sums of packed keys have a row for every key of a strip.
    const std::int64_t keys =
        strips_.any() ? strips_.per_head() * PackedStrips::kKeys : problem_.seq_kv;
    d_k_ = plan_sums(problem_.head_dim, keys, buffers);
    d_v_ = plan_sums(problem_.head_dim_v, keys, buffers);
    d_q_ = plan_sums(problem_.head_dim, problem_.seq_q,
                     parts_ > 1 ? buffered_sequences() * problem_.heads_q : 0);
  }

  std::string config() const override {
    return to_string(blocking_, isa_) + " parts=" + std::to_string(parts_);
  }
  std::size_t workspace_bytes() const override { return layout_.bytes(); }

  Status run(const Arguments& arguments) const override {
    const Run run{
        arguments,
        TileGrid(problem_, arguments.inputs, blocking_,
                 reinterpret_cast<std::int64_t*>(arguments.workspace + grid_)),
        DropoutStream(problem_.dropout_p, arguments.inputs.seed, arguments.inputs.offset)};
    Executor& executor = *arguments.executor;
    if (problem_.sink_gradient) {
      std::memset(arguments.workspace + sink_parts_, 0,
                  static_cast<std::size_t>(run.grid.total_tiles() * problem_.heads_q * 4));
    }
    strips_.pack(arguments, run.grid);
    const std::int64_t heads = problem_.heads_kv;
    const std::int64_t sequences = TileGrid::sequences(problem_);
    if (parts_ == 1) {
      for_each_task(executor, problem_.threads, sequences * heads,
                    [&](int worker, std::int64_t head) {
                      run_part(run, worker, head / heads, head % heads, 0, 0);
                    });
    } else {
      Turns turns(reinterpret_cast<PartState*>(arguments.workspace + turns_), sequences * heads,
                  parts_);
      const int workers =
          static_cast<int>(std::min<std::int64_t>(problem_.threads, sequences * heads * parts_));
      for_workers(executor, workers, [&](int worker) {
        turns.work(worker, workers, [&](std::int64_t head, std::int64_t part, std::int64_t turn) {
          run_part(run, worker, head / heads, head % heads, part, turn);
        });
      });
    }
    if (problem_.sink_gradient) sum_sink(run);
    if (problem_.bias_gradient) run_bias_gradient(run);
    return {};
  }

 private:
  struct Run {
    const Arguments& arguments;
    TileGrid grid;
    DropoutStream dropout;
  };

  /// Tiles of a worker that are described at a time.
  static constexpr int kSlots = 2;

  std::int64_t bias_stride() const { return round_up(blocking_.block_kv, isa_.lanes); }

  std::byte* worker_memory(const Run& run, int worker) const {
    return run.arguments.workspace + workers_ + worker * worker_bytes_;
  }

  /// A buffer of sums holds one head of one sequence, or of all packed sequences.
  std::int64_t buffered_sequences() const { return problem_.varlen ? 1 : problem_.batch; }

  /// f32 rows of sums, from the sequence's first row on.
  struct SumRows {
    float* data = nullptr;
    std::int64_t stride = 0;
  };

  SumRows key_sums(const Run& run, const Sums& sums, const TensorView& out, int worker,
                   std::int64_t b, std::int64_t h_kv, const Sequence& s) const {
    if (!out.present()) return {};
    if (sums.in_place) {
      const OutputRows rows = output_rows_of(problem_, out, b, h_kv, s.kv_begin);
      return {static_cast<float*>(rows.data), rows.stride};
    }
    const std::int64_t buffer =
        parts_ > 1 ? (problem_.varlen ? 0 : b) * problem_.heads_kv + h_kv : worker;
    auto* base = reinterpret_cast<float*>(run.arguments.workspace + sums.offset);
    const std::int64_t first =
        strips_.any() ? strips_.first(b, s) * PackedStrips::kKeys : s.kv_begin;
    const std::int64_t row = parts_ > 1 ? first : 0;
    return {base + buffer * sums.buffer_floats + row * sums.padded, sums.padded};
  }

  /// Calls f(first key, count) for the runs of keys that belong to `part`.
  template <class F>
  void for_own_keys(const Sequence& s, std::int64_t part, F&& f) const {
    const std::int64_t unit = parts_ > 1 ? blocking_.block_kv : std::max<std::int64_t>(s.kv_len, 1);
    for (std::int64_t key = part * unit; key < s.kv_len; key += parts_ * unit) {
      f(key, std::min(unit, s.kv_len - key));
    }
  }

  /// One turn of one part of a head: its keys against the query tiles of part (part + turn) %
  /// parts.
  void run_part(const Run& run, int worker, std::int64_t b, std::int64_t h_kv, std::int64_t part,
                std::int64_t turn) const {
    const Sequence s = run.grid.sequence(b);
    const InputGradients& out = run.arguments.d_inputs;
    SumRows d_k, d_v;
    if (b < problem_.batch) {
      d_k = key_sums(run, d_k_, out.d_k, worker, b, h_kv, s);
      d_v = key_sums(run, d_v_, out.d_v, worker, b, h_kv, s);
    }
    if (turn == 0) {
      for_own_keys(s, part, [&](std::int64_t key, std::int64_t count) {
        const std::int64_t rows = strips_.any() ? round_up(count, PackedStrips::kKeys) : count;
        zero_sums(d_k_, d_k, key, rows);
        zero_sums(d_v_, d_v, key, rows);
      });
      if (part == 0) {
        zero_unused_keys(b, h_kv, s, d_k_, out.d_k);
        zero_unused_keys(b, h_kv, s, d_v_, out.d_v);
      }
    }
    // A tile is known while the one before is worked on, which can then read ahead for it.
    const Turn at{worker, b, h_kv, part, turn, s, d_k, d_v};
    BackwardTile tile[kSlots];
    std::int64_t index = (part + turn) % parts_;
    bool more = next_tile(run, at, 0, index, tile[0]);
    for (int slot = 0; more; slot = 1 - slot) {
      more = next_tile(run, at, 1 - slot, index, tile[1 - slot]);
      if (more) announce(tile[1 - slot], tile[slot]);
      isa_.backward(tile[slot], reinterpret_cast<float*>(worker_memory(run, worker)));
    }
    if (turn == parts_ - 1) {
      for_own_keys(s, part, [&](std::int64_t key, std::int64_t count) {
        store_keys(b, h_kv, s, d_k_, d_k, out.d_k, key, count);
        store_keys(b, h_kv, s, d_v_, d_v, out.d_v, key, count);
      });
    }
  }

  static void zero_sums(const Sums& sums, const SumRows& rows, std::int64_t key,
                        std::int64_t count) {
    if (rows.data == nullptr) return;
    zero_rows({rows.data + key * rows.stride, rows.stride, DType::f32}, count,
              sums.in_place ? sums.columns : sums.padded);
  }

  void zero_unused_keys(std::int64_t b, std::int64_t h_kv, const Sequence& s, const Sums& sums,
                        const TensorView& out) const {
    if (!out.present() || s.kv_rows == s.kv_len) return;
    zero_rows(output_rows_of(problem_, out, b, h_kv, s.kv_begin + s.kv_len), s.kv_rows - s.kv_len,
              sums.columns);
  }

  void store_keys(std::int64_t b, std::int64_t h_kv, const Sequence& s, const Sums& sums,
                  const SumRows& from, const TensorView& out, std::int64_t key,
                  std::int64_t count) const {
    if (from.data == nullptr || sums.in_place) return;
    isa_.store_rows(from.data + key * from.stride, from.stride, count, sums.columns,
                    output_rows_of(problem_, out, b, h_kv, s.kv_begin + key));
  }

  /// What every backward tile needs, whichever gradients it writes.
  void describe(const Run& run, std::byte* memory, int slot, std::int64_t b, std::int64_t h,
                const Sequence& s, const TileRows& rows, BackwardTile& tile) const {
    const Arguments& a = run.arguments;
    std::byte* ranges = memory + worker_floats_ * 4 + 2 * slot * ranges_bytes_;
    auto* key_begin = reinterpret_cast<std::int32_t*>(ranges);
    auto* key_end = reinterpret_cast<std::int32_t*>(ranges + ranges_bytes_);
    describe_tile(problem_, a.inputs, blocking_, run.dropout, b, h, s, rows, key_begin, key_end,
                  tile);
    strips_.attach(a, b, h / problem_.group(), s, tile);
    const std::int64_t first = s.q_begin + rows.begin;
    tile.scale = static_cast<float>(problem_.scale);
    tile.o = rows_of(problem_, a.outputs.o, b, h, first);
    tile.d_o = rows_of(problem_, a.d_outputs.d_o, b, h, first);
    const RowValues lse = row_values_of(problem_, a.outputs.lse, b, h, first);
    tile.lse = lse.data;
    tile.lse_stride = lse.stride;
    const RowValues d_lse = row_values_of(problem_, a.d_outputs.d_lse, b, h, first);
    tile.d_lse = d_lse.data;
    tile.d_lse_stride = d_lse.stride;
  }

  /// One turn of one part of a head.
  struct Turn {
    int worker;
    std::int64_t b, h_kv, part, turn;
    const Sequence& sequence;
    const SumRows& d_k;
    const SumRows& d_v;
  };

  /// The first tile from `index` on, among those of the turn, that has anything to do; false if
  /// there is none. `index` moves behind it.
  bool next_tile(const Run& run, const Turn& at, int slot, std::int64_t& index,
                 BackwardTile& tile) const {
    const std::int64_t tiles = run.grid.tiles(at.b);
    while (index < tiles * problem_.group()) {
      const std::int64_t h = at.h_kv * problem_.group() + index / tiles;
      const std::int64_t tile_of_head = index % tiles;
      index += parts_;
      if (describe_turn(run, at, slot, h, tile_of_head, tile)) return true;
    }
    return false;
  }

  bool describe_turn(const Run& run, const Turn& at, int slot, std::int64_t h, std::int64_t index,
                     BackwardTile& tile) const {
    const Arguments& a = run.arguments;
    const Sequence& s = at.sequence;
    const TileRows rows = run.grid.rows(s, index);
    const std::int64_t first = s.q_begin + rows.begin;
    const OutputRows d_q = output_rows_of(problem_, a.d_inputs.d_q, at.b, h, first);
    if (d_q.data != nullptr && at.turn == 0) {
      zero_rows(output_rows_of(problem_, a.d_inputs.d_q, at.b, h, first + rows.used),
                rows.rows - rows.used, problem_.head_dim);
    }
    if (rows.used == 0) return false;
    tile = {};
    describe(run, worker_memory(run, at.worker), slot, at.b, h, s, rows, tile);
    tile.keys.unit = blocking_.block_kv;
    tile.keys.part = at.part;
    tile.keys.parts = parts_;
    tile.d_q = d_q;
    if (d_q.data != nullptr && parts_ > 1) {
      OutputRows sums = d_q;
      if (!d_q_.in_place) {
        auto* base = reinterpret_cast<float*>(run.arguments.workspace + d_q_.offset);
        const std::int64_t head = (problem_.varlen ? 0 : at.b) * problem_.heads_q + h;
        sums = {base + head * d_q_.buffer_floats + first * d_q_.padded, d_q_.padded, DType::f32};
      }
      if (at.turn > 0) tile.d_q_so_far = {sums.data, sums.stride, DType::f32};
      if (at.turn < parts_ - 1) tile.d_q = sums;
    }
    // Under a block mask many tiles have no keys of a part. Their dQ must only begin and end.
    KeyWalk walk = tile.keys;
    KeySegment segment;
    const bool dq_ends = at.turn == parts_ - 1 && d_q.data != nullptr && !d_q_.in_place;
    if (at.turn > 0 && !dq_ends && !next_segment(walk, segment)) return false;
    tile.d_k = at.d_k.data;
    tile.d_k_stride = at.d_k.stride;
    tile.d_v = at.d_v.data;
    tile.d_v_stride = at.d_v.stride;
    if (problem_.sink_gradient && at.turn == 0) {
      tile.sink = sink_of(a.inputs, h);
      tile.d_sink = sink_parts(run, at.b, h) + index;
    }
    return true;
  }

  /// Tells a tile what the next one begins with.
  static void announce(const BackwardTile& next, BackwardTile& tile) {
    const auto rows = [&next](const Rows& of, std::int64_t columns) -> RowsToCome {
      return {of, of.data == nullptr ? 0 : next.rows, columns * size_of(of.dtype)};
    };
    tile.coming[0] = rows(next.q, next.blocking.head_dim);
    tile.coming[1] = rows(next.d_o, next.blocking.head_dim_v);
    tile.coming[2] = rows(next.o, next.blocking.head_dim_v);
    tile.coming[3] = rows(next.d_q_so_far, next.blocking.head_dim);
  }

  static float sink_of(const Inputs& inputs, std::int64_t h) {
    return static_cast<const float*>(inputs.sink.data)[h * inputs.sink.stride[0]];
  }

  /// One float per tile of head h of sequence b.
  float* sink_parts(const Run& run, std::int64_t b, std::int64_t h) const {
    return reinterpret_cast<float*>(run.arguments.workspace + sink_parts_) +
           run.grid.tiles_before(b) * problem_.heads_q + h * run.grid.tiles(b);
  }

  void sum_sink(const Run& run) const {
    const TensorView& out = run.arguments.d_inputs.d_sink;
    for (std::int64_t h = 0; h < problem_.heads_q; ++h) {
      double sum = 0;
      for (std::int64_t b = 0; b < problem_.batch; ++b) {
        const float* parts = sink_parts(run, b, h);
        for (std::int64_t tile = 0; tile < run.grid.tiles(b); ++tile) {
          sum += static_cast<double>(parts[tile]);
        }
      }
      static_cast<float*>(out.data)[h * out.stride[0]] = static_cast<float>(sum);
    }
  }

  /// d_bias is summed over the dimensions along which the bias repeats, so a task owns a patch of
  /// d_bias (rows of one tile, or the one row of a row-broadcast bias, × one block of keys) and
  /// goes through everything that adds to it in a fixed order.
  void run_bias_gradient(const Run& run) const {
    const TensorView& out = run.arguments.d_inputs.d_bias;
    const bool one_row = out.size[2] == 1;
    const Sequence rows{0, 0, out.size[2], 0, out.size[2], 0, 0};
    const std::int64_t tiles = one_row ? 1 : bias_tiles(out.size[2]);
    const std::int64_t blocks = (out.size[3] + blocking_.block_kv - 1) / blocking_.block_kv;
    const std::int64_t count = out.size[0] * out.size[1] * tiles * blocks;
    for_each_task(*run.arguments.executor, problem_.threads, count,
                  [&](int worker, std::int64_t task) {
                    const std::int64_t block = task % blocks;
                    const std::int64_t tile = task / blocks % tiles;
                    const std::int64_t h = task / blocks / tiles % out.size[1];
                    const std::int64_t b = task / blocks / tiles / out.size[1];
                    const TileRows patch = one_row ? TileRows{0, 1, 1} : run.grid.rows(rows, tile);
                    sum_bias_gradient(run, worker, b, h, tile, patch, block * blocking_.block_kv);
                  });
  }

  std::int64_t bias_tiles(std::int64_t rows) const {
    return TileGrid::tiles_of(rows, problem_, blocking_);
  }

  void sum_bias_gradient(const Run& run, int worker, std::int64_t b_bias, std::int64_t h_bias,
                         std::int64_t tile_index, const TileRows& patch, std::int64_t begin) const {
    const TensorView& out = run.arguments.d_inputs.d_bias;
    const bool one_row = out.size[2] == 1;
    const std::int64_t keys = std::min(blocking_.block_kv, out.size[3] - begin);
    const std::int64_t stride = bias_stride();
    std::byte* memory = worker_memory(run, worker);
    auto* scratch = reinterpret_cast<float*>(memory);
    float* one = scratch + isa_.backward_scratch_floats(blocking_);
    float* sum = one + blocking_.tile_q * stride;
    std::fill(sum, sum + patch.rows * stride, 0.0f);

    const auto add_tile = [&](std::int64_t b, std::int64_t h, const Sequence& s,
                              std::int64_t index) {
      const TileRows rows = run.grid.rows(s, index);
      const std::int64_t end = std::min(begin + keys, s.kv_len);
      if (rows.used == 0 || begin >= end) return;
      BiasGradientTile tile;
      describe(run, memory, 0, b, h, s, rows, tile);
      tile.begin = begin;
      tile.end = end;
      tile.d_bias = one;
      tile.d_bias_stride = stride;
      isa_.bias_gradient(tile, scratch);
      for (std::int64_t i = 0; i < rows.used; ++i) {
        float* to = sum + (one_row ? 0 : i * stride);
        const float* from = one + i * stride;
        for (std::int64_t j = 0; j < end - begin; ++j) to[j] += from[j];
      }
    };
    for (std::int64_t b = 0; b < problem_.batch; ++b) {
      if (out.size[0] > 1 && b != b_bias) continue;
      const Sequence s = run.grid.sequence(b);
      for (std::int64_t h = 0; h < problem_.heads_q; ++h) {
        if (out.size[1] > 1 && h != h_bias) continue;
        if (!one_row) {
          if (tile_index < run.grid.tiles(b)) add_tile(b, h, s, tile_index);
          continue;
        }
        for (std::int64_t index = 0; index < run.grid.tiles(b); ++index) add_tile(b, h, s, index);
      }
    }
    const std::int64_t offset =
        b_bias * out.stride[0] + h_bias * out.stride[1] + patch.begin * out.stride[2] + begin;
    isa_.store_rows(sum, stride, patch.rows, keys,
                    {static_cast<std::byte*>(out.data) + offset * size_of(out.dtype), out.stride[2],
                     out.dtype});
  }

  Problem problem_;
  const Isa& isa_;
  Blocking blocking_;
  WorkspaceLayout layout_;
  PackedStrips strips_;
  std::int64_t parts_ = 1;
  std::size_t grid_ = 0;
  std::size_t turns_ = 0;
  std::int64_t worker_floats_ = 0;
  std::int64_t ranges_bytes_ = 0;  ///< Of the first keys of a tile's rows, or the last ones.
  std::int64_t worker_bytes_ = 0;
  std::size_t workers_ = 0;
  std::size_t sink_parts_ = 0;
  Sums d_q_;
  Sums d_k_;
  Sums d_v_;
};

}  // namespace

std::unique_ptr<Kernel> make_backward(const Problem& problem, const Isa& isa) {
  return std::make_unique<BackwardKernel>(problem, isa);
}

}  // namespace tessera::cpu
