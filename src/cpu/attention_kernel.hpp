// What the forward and backward drivers share: how the score matrix is cut into tiles, how a tile
// is described to the kernels, and how the workspace is laid out.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/philox.hpp"
#include "core/registry.hpp"
#include "core/sequences.hpp"
#include "cpu/blocking.hpp"
#include "cpu/kernel/sage.hpp"
#include "cpu/kernel/tile.hpp"

namespace tessera::cpu {

/// Counts bytes, 64-byte aligned, and hands out the same offsets as pointers.
class WorkspaceLayout {
 public:
  std::size_t add(std::int64_t bytes) {
    const std::size_t offset = bytes_;
    bytes_ += (static_cast<std::size_t>(bytes) + 63) / 64 * 64;
    return offset;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

/// Rows of one tile of one sequence: [begin, begin + rows), of which the first `used` are used.
struct TileRows {
  std::int64_t begin = 0;
  std::int64_t rows = 0;
  std::int64_t used = 0;
};

/// The tiles of a run. Sequence `batch` of a packed problem stands for the tokens behind the last
/// sequence: rows without keys, which get zeros.
class TileGrid {
 public:
  /// `offsets` is workspace of [sequences() + 1].
  TileGrid(const Problem& problem, const Inputs& inputs, const Blocking& blocking,
           std::int64_t* offsets);

  static std::int64_t sequences(const Problem& problem) {
    return problem.batch + (problem.varlen ? 1 : 0);
  }
  /// At most this many tiles per head, over all sequences.
  static std::int64_t most_tiles(const Problem& problem, const Blocking& blocking);

  Sequence sequence(std::int64_t b) const;
  /// Tiles of sequence b, per head.
  std::int64_t tiles(std::int64_t b) const { return offsets_[b + 1] - offsets_[b]; }
  /// Tiles of the sequences before b, per head.
  std::int64_t tiles_before(std::int64_t b) const { return offsets_[b]; }
  std::int64_t total_tiles() const { return offsets_[sequences(problem_)]; }
  /// The sequence that tile `index` (per head, over all sequences) belongs to.
  std::int64_t sequence_of_tile(std::int64_t index) const;
  TileRows rows(const Sequence& s, std::int64_t tile) const;
  /// Tiles that `rows` rows are cut into.
  static std::int64_t tiles_of(std::int64_t rows, const Problem& problem, const Blocking& blocking);

 private:
  const Problem& problem_;
  const Inputs& inputs_;
  const Blocking& blocking_;
  std::int64_t* offsets_;
};

/// Rows of head h, sequence s, of a [B, H, S, D] or [T, H, D] tensor, from row `row` on.
Rows rows_of(const Problem& problem, const TensorView& view, std::int64_t b, std::int64_t h,
             std::int64_t row);
OutputRows output_rows_of(const Problem& problem, const TensorView& view, std::int64_t b,
                          std::int64_t h, std::int64_t row);

/// Address and stride of the LSE (or its gradient) at row `row` of head h; null if absent.
struct RowValues {
  float* data = nullptr;
  std::int64_t stride = 0;
};
RowValues row_values_of(const Problem& problem, const TensorView& view, std::int64_t b,
                        std::int64_t h, std::int64_t row);

/// Writes zeros to `count` rows of `columns`.
void zero_rows(const OutputRows& rows, std::int64_t count, std::int64_t columns);

/// Fills in what both passes need of the tile: rows, score rules, key ranges and the key walk. The
/// two arrays are scratch of [tile_q].
void describe_tile(const Problem& problem, const Inputs& inputs, const Blocking& blocking,
                   const DropoutStream& dropout, std::int64_t b, std::int64_t h, const Sequence& s,
                   const TileRows& rows, std::int32_t* key_begin, std::int32_t* key_end,
                   TileBase& tile);

/// The same for a forward tile, with its sink and where its results go.
void describe_forward_tile(const Problem& problem, const Arguments& arguments,
                           const Blocking& blocking, const DropoutStream& dropout, std::int64_t b,
                           std::int64_t h, const Sequence& s, const TileRows& rows,
                           std::int32_t* key_begin, std::int32_t* key_end, ForwardTile& tile);

/// O = 0 and LSE = −inf in the tile's rows behind the used ones.
void zero_unused_rows(const Problem& problem, const Outputs& outputs, std::int64_t b,
                      std::int64_t h, const Sequence& s, const TileRows& rows);

/// Into how many parts, `most` at the most, to cut each of `heads` equal pieces of work: as few as
/// keep the threads evenly busy.
std::int64_t choose_parts(std::int64_t heads, int threads, std::int64_t most);

/// Runs body(worker) for `threads` workers on the executor.
template <class Body>
void for_workers(Executor& executor, int threads, Body&& body) {
  executor.parallel(
      threads, [](void* context, int worker) { (*static_cast<Body*>(context))(worker); }, &body);
}

/// Runs body(worker, next) for at most `threads` workers, where next() gives the index of a task or
/// −1 at the end; every index in [0, count) is given once. Each worker has a share of neighbouring
/// indices, the same from call to call, and goes through it in ascending order; then it helps with
/// the shares of others. So neighbours should share data, and heavy ones come before light ones.
template <class Body>
void for_each_share(Executor& executor, int threads, std::int64_t count, Body&& body) {
  struct alignas(64) Share {
    std::atomic<std::int64_t> next;
    std::int64_t end;
  };
  constexpr int kMostShares = 256;
  const int workers = static_cast<int>(std::min<std::int64_t>(threads, count));
  const int shares = std::min(workers, kMostShares);
  if (shares <= 1) {
    std::int64_t index = 0;
    body(0, [&]() -> std::int64_t { return index < count ? index++ : -1; });
    return;
  }
  Share share[kMostShares];
  for (int i = 0; i < shares; ++i) {
    share[i].next.store(count * i / shares, std::memory_order_relaxed);
    share[i].end = count * (i + 1) / shares;
  }
  for_workers(executor, workers, [&](int worker) {
    int at = 0;
    body(worker, [&]() -> std::int64_t {
      for (; at < shares; ++at) {
        Share& s = share[(worker + at) % shares];
        const std::int64_t index = s.next.fetch_add(1, std::memory_order_relaxed);
        if (index < s.end) return index;
      }
      return -1;
    });
  });
}

/// Runs body(worker, index) for every index in [0, count), shared out likewise.
template <class Body>
void for_each_task(Executor& executor, int threads, std::int64_t count, Body&& body) {
  for_each_share(executor, threads, count, [&](int worker, auto&& next) {
    for (std::int64_t index; (index = next()) >= 0;) body(worker, index);
  });
}

std::unique_ptr<Kernel> make_forward(const Problem& problem, const Isa& isa);
/// Whether a forward problem has so few query rows that its heads' keys are shared out.
bool are_few_rows(const Problem& problem, const Isa& isa);
std::unique_ptr<Kernel> make_few_rows(const Problem& problem, const Isa& isa);
std::unique_ptr<Kernel> make_backward(const Problem& problem, const Isa& isa);
std::unique_ptr<Kernel> make_sage(const Problem& problem, const SageIsa& isa);

}  // namespace tessera::cpu
