// Backward driver.
//
// A task is one key/value head of one sequence, or one of `splits` interleaved parts of its query
// tiles when there are fewer heads than threads need. A task owns the f32 accumulators of dK and dV
// that it adds to (the caller's own d_k and d_v where they are f32), so results depend on the
// thread count only, never on timing. Parts are summed in order afterwards.
#include <algorithm>
#include <cstring>

#include "cpu/attention_kernel.hpp"

namespace tessera::cpu {
namespace {

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

/// How many parts to cut each head's query tiles into: as few as keep the threads evenly busy, and
/// no more than four tasks a thread, each of which may need an accumulator.
std::int64_t choose_splits(const Problem& p, std::int64_t tiles_per_head) {
  const std::int64_t heads = std::max<std::int64_t>(p.batch * p.heads_kv, 1);
  const std::int64_t most = std::max<std::int64_t>(
      std::min<std::int64_t>(tiles_per_head * p.group(), (4 * p.threads + heads - 1) / heads), 1);
  std::int64_t best = 1;
  double best_busy = 0;
  for (std::int64_t splits = 1; splits <= most && best_busy < 0.95; ++splits) {
    const std::int64_t tasks = heads * splits;
    const std::int64_t rounds = (tasks + p.threads - 1) / p.threads;
    const double busy = static_cast<double>(tasks) / static_cast<double>(rounds * p.threads);
    if (busy > best_busy) {
      best = splits;
      best_busy = busy;
    }
  }
  return best;
}

/// Where one of dK, dV accumulates.
struct KeyGradient {
  std::int64_t columns = 0;
  std::int64_t padded = 0;
  bool direct = false;  ///< The caller's tensor serves as the first part's accumulator.
  std::int64_t buffers = 0;
  std::int64_t buffer_floats = 0;
  std::size_t offset = 0;  ///< Of the first buffer in the workspace.
};

class BackwardKernel final : public Kernel {
 public:
  BackwardKernel(const Problem& problem, const Isa& isa)
      : problem_(problem), isa_(isa), blocking_(choose_blocking(problem, isa)) {
    const std::int64_t heads = problem_.batch * problem_.heads_kv;
    splits_ = choose_splits(problem_, (problem_.seq_q + blocking_.tile_q - 1) / blocking_.tile_q);
    WorkspaceLayout layout;
    layout.add((TileGrid::sequences(problem_) + 1) * sizeof(std::int64_t));
    const std::int64_t sink_floats =
        problem_.sink_gradient ? TileGrid::most_tiles(problem_, blocking_) * problem_.heads_q : 0;
    sink_parts_ = layout.add(sink_floats * 4);
    worker_floats_ = isa_.backward_scratch_floats(blocking_);
    if (problem_.bias_gradient) worker_floats_ += 2 * blocking_.tile_q * bias_stride();
    worker_bytes_ = worker_floats_ * 4 + 2 * ((blocking_.tile_q * 4 + 63) / 64 * 64);
    workers_ = layout.add(problem_.threads * worker_bytes_);
    const auto plan_gradient = [&](std::int64_t columns) {
      KeyGradient g;
      g.columns = columns;
      g.padded = round_up(columns, isa_.lanes);
      g.direct = problem_.dtype == DType::f32 && columns % isa_.lanes == 0;
      g.buffers = splits_ > 1 ? heads * (splits_ - (g.direct ? 1 : 0))
                              : (g.direct ? 0 : std::min<std::int64_t>(problem_.threads, heads));
      g.buffer_floats = problem_.seq_kv * g.padded;
      g.offset = layout.add(g.buffers * g.buffer_floats * 4);
      return g;
    };
    d_k_ = plan_gradient(problem_.head_dim);
    d_v_ = plan_gradient(problem_.head_dim_v);
    workspace_bytes_ = layout.bytes();
  }

  std::string config() const override {
    return to_string(blocking_, isa_) + " splits=" + std::to_string(splits_);
  }
  std::size_t workspace_bytes() const override { return workspace_bytes_; }

  Status run(const Arguments& arguments) const override {
    const Run run{
        arguments,
        TileGrid(problem_, arguments.inputs, blocking_,
                 reinterpret_cast<std::int64_t*>(arguments.workspace)),
        DropoutStream(problem_.dropout_p, arguments.inputs.seed, arguments.inputs.offset)};
    Executor& executor = *arguments.executor;
    if (problem_.sink_gradient) {
      std::memset(arguments.workspace + sink_parts_, 0,
                  static_cast<std::size_t>(run.grid.total_tiles() * problem_.heads_q * 4));
    }
    const std::int64_t heads = problem_.heads_kv;
    const std::int64_t sequences = TileGrid::sequences(problem_);
    for_each_task(executor, problem_.threads, sequences * heads * splits_,
                  [&](int worker, std::int64_t task) {
                    const std::int64_t head = task / splits_;
                    run_part(run, worker, head / heads, head % heads, task % splits_);
                  });
    if (splits_ > 1) {
      for_each_task(executor, problem_.threads, problem_.batch * heads,
                    [&](int, std::int64_t head) {
                      sum_parts(run, head / heads, head % heads, d_k_, arguments.d_inputs.d_k);
                      sum_parts(run, head / heads, head % heads, d_v_, arguments.d_inputs.d_v);
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

  std::int64_t bias_stride() const { return round_up(blocking_.block_kv, isa_.lanes); }

  std::byte* worker_memory(const Run& run, int worker) const {
    return run.arguments.workspace + workers_ + worker * worker_bytes_;
  }

  /// The accumulator of part `split` of a head, and its row stride.
  struct Accumulator {
    float* data = nullptr;
    std::int64_t stride = 0;
    bool in_place = false;
  };

  Accumulator accumulator_of(const Run& run, const KeyGradient& g, const TensorView& out,
                             int worker, std::int64_t b, std::int64_t h_kv, std::int64_t split,
                             const Sequence& s) const {
    if (!out.present()) return {};
    if (g.direct && split == 0) {
      const OutputRows rows = output_rows_of(problem_, out, b, h_kv, s.kv_begin);
      return {static_cast<float*>(rows.data), rows.stride, true};
    }
    const std::int64_t head = b * problem_.heads_kv + h_kv;
    const std::int64_t buffer = splits_ == 1 ? worker
                                : g.direct   ? head * (splits_ - 1) + split - 1
                                             : head * splits_ + split;
    auto* base = reinterpret_cast<float*>(run.arguments.workspace + g.offset);
    return {base + buffer * g.buffer_floats, g.padded, false};
  }

  void run_part(const Run& run, int worker, std::int64_t b, std::int64_t h_kv,
                std::int64_t split) const {
    const Sequence s = run.grid.sequence(b);
    const InputGradients& out = run.arguments.d_inputs;
    const bool tail = b == problem_.batch;
    Accumulator d_k, d_v;
    if (!tail) {
      d_k = accumulator_of(run, d_k_, out.d_k, worker, b, h_kv, split, s);
      d_v = accumulator_of(run, d_v_, out.d_v, worker, b, h_kv, split, s);
      if (d_k.data)
        zero_rows({d_k.data, d_k.stride, DType::f32}, s.kv_len,
                  d_k.in_place ? d_k_.columns : d_k_.padded);
      if (d_v.data)
        zero_rows({d_v.data, d_v.stride, DType::f32}, s.kv_len,
                  d_v.in_place ? d_v_.columns : d_v_.padded);
    }
    const std::int64_t tiles = run.grid.tiles(b);
    for (std::int64_t index = split; index < tiles * problem_.group(); index += splits_) {
      const std::int64_t h = h_kv * problem_.group() + index / tiles;
      run_tile(run, worker, b, h, index % tiles, s, d_k, d_v);
    }
    if (split == 0) {
      zero_unused_keys(b, h_kv, s, d_k_, out.d_k);
      zero_unused_keys(b, h_kv, s, d_v_, out.d_v);
    }
    if (splits_ == 1 && !tail) {
      store(b, h_kv, s, d_k_, d_k, out.d_k);
      store(b, h_kv, s, d_v_, d_v, out.d_v);
    }
  }

  void zero_unused_keys(std::int64_t b, std::int64_t h_kv, const Sequence& s, const KeyGradient& g,
                        const TensorView& out) const {
    if (!out.present() || s.kv_rows == s.kv_len) return;
    zero_rows(output_rows_of(problem_, out, b, h_kv, s.kv_begin + s.kv_len), s.kv_rows - s.kv_len,
              g.columns);
  }

  void store(std::int64_t b, std::int64_t h_kv, const Sequence& s, const KeyGradient& g,
             const Accumulator& from, const TensorView& out) const {
    if (from.data == nullptr || from.in_place) return;
    isa_.store_rows(from.data, from.stride, s.kv_len, g.columns,
                    output_rows_of(problem_, out, b, h_kv, s.kv_begin));
  }

  void sum_parts(const Run& run, std::int64_t b, std::int64_t h_kv, const KeyGradient& g,
                 const TensorView& out) const {
    if (!out.present()) return;
    const Sequence s = run.grid.sequence(b);
    const Accumulator first = accumulator_of(run, g, out, 0, b, h_kv, 0, s);
    for (std::int64_t split = 1; split < splits_; ++split) {
      const Accumulator part = accumulator_of(run, g, out, 0, b, h_kv, split, s);
      for (std::int64_t j = 0; j < s.kv_len; ++j) {
        float* to = first.data + j * first.stride;
        const float* from = part.data + j * part.stride;
        for (std::int64_t d = 0; d < g.columns; ++d) to[d] += from[d];
      }
    }
    store(b, h_kv, s, g, first, out);
  }

  /// What every backward tile needs, whichever gradients it writes.
  void describe(const Run& run, std::byte* memory, std::int64_t b, std::int64_t h,
                const Sequence& s, const TileRows& rows, BackwardTile& tile) const {
    const Arguments& a = run.arguments;
    auto* key_begin = reinterpret_cast<std::int32_t*>(memory + worker_floats_ * 4);
    auto* key_end = key_begin + (blocking_.tile_q + 15) / 16 * 16;
    describe_tile(problem_, a.inputs, blocking_, run.dropout, b, h, s, rows, key_begin, key_end,
                  tile);
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

  void run_tile(const Run& run, int worker, std::int64_t b, std::int64_t h, std::int64_t index,
                const Sequence& s, const Accumulator& d_k, const Accumulator& d_v) const {
    const Arguments& a = run.arguments;
    const TileRows rows = run.grid.rows(s, index);
    const std::int64_t first = s.q_begin + rows.begin;
    if (a.d_inputs.d_q.present()) {
      zero_rows(output_rows_of(problem_, a.d_inputs.d_q, b, h, first + rows.used),
                rows.rows - rows.used, problem_.head_dim);
    }
    if (rows.used == 0) return;
    std::byte* memory = worker_memory(run, worker);
    BackwardTile tile;
    describe(run, memory, b, h, s, rows, tile);
    tile.d_q = output_rows_of(problem_, a.d_inputs.d_q, b, h, first);
    tile.d_k = d_k.data;
    tile.d_k_stride = d_k.stride;
    tile.d_v = d_v.data;
    tile.d_v_stride = d_v.stride;
    if (problem_.sink_gradient) {
      tile.sink = sink_of(a.inputs, h);
      tile.d_sink = sink_parts(run, b, h) + index;
    }
    isa_.backward(tile, reinterpret_cast<float*>(memory));
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
      describe(run, memory, b, h, s, rows, tile);
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
  std::int64_t splits_ = 1;
  std::int64_t worker_floats_ = 0;
  std::int64_t worker_bytes_ = 0;
  std::size_t workers_ = 0;
  std::size_t sink_parts_ = 0;
  KeyGradient d_k_;
  KeyGradient d_v_;
  std::size_t workspace_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> make_backward(const Problem& problem, const Isa& isa) {
  return std::make_unique<BackwardKernel>(problem, isa);
}

}  // namespace tessera::cpu
