#include "cpu/blocking.hpp"

#include <algorithm>
#include <bit>

#include "core/format.hpp"
#include "cpu/cpu_info.hpp"

namespace tessera::cpu {
namespace {

constexpr std::int64_t kMaxTileRows = 288;
constexpr std::int64_t kMinBlockKv = 64;
constexpr std::int64_t kMaxBlockKv = 256;
constexpr std::int64_t kLargeL2Bytes = 1 << 20;
/// Of the bf16 kernels: where blocks and tiles have their full size, and the least they have.
constexpr std::int64_t kWholeL2Bytes = 2 << 20;
constexpr std::int64_t kLeastSide = 128;
/// Rows of their backward tiles where L2 is smaller and cannot hold such a block and its sums.
constexpr std::int64_t kTallTileRows = 768;
constexpr std::int64_t kTasksPerThread = 3;

std::int64_t round_down(std::int64_t n, std::int64_t step) { return n / step * step; }
std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

Blocking choose_blocking(const Problem& p, const Isa& isa) {
  const bool forward = p.pass == Pass::forward;
  const std::int64_t panel = static_cast<std::int64_t>(isa.lanes) * isa.tile_vectors;
  Blocking b;
  b.head_dim = p.head_dim;
  b.head_dim_v = p.head_dim_v;

  // Forward: scores of one panel in about half of L1, beside a register tile's worth of K or V.
  // Backward keeps P and dS of all panels, in L2 like everything else of the block.
  const std::int64_t l1_floats = cpu_info().l1_bytes / 4;
  const std::int64_t l2_bytes = cpu_info().l2_bytes;
  b.block_kv =
      forward ? std::clamp(round_down(l1_floats * 6 / 10 / panel, 64), kMinBlockKv, kMaxBlockKv)
              : (l2_bytes >= kLargeL2Bytes ? 2 * kMinBlockKv : kMinBlockKv);

  // In L2: K and V of a block (and dK, dV), and per query row Q and O (Q, dO twice, dQ, P and dS).
  const std::int64_t l2_floats = forward ? l2_bytes / 4 * 7 / 10 : l2_bytes / 4;
  const std::int64_t dims = p.head_dim + p.head_dim_v;
  const std::int64_t per_key = forward ? dims : 2 * dims;
  const std::int64_t per_row = forward ? dims : 2 * dims + p.head_dim + 2 * b.block_kv;
  const std::int64_t fitting = (l2_floats - b.block_kv * per_key) / per_row;
  b.tile_q = std::clamp(round_down(fitting, panel), panel * 2, kMaxTileRows);

  if (isa.pack_strip != nullptr) {
    // Scores, weights and operands of a unit stream through L2 either way; large tiles and blocks
    // move K, V, O and the sums of dK and dV less often. All of it takes half of L2 at D 128.
    const std::int64_t most = forward ? 512 : 256;
    const auto share = static_cast<std::uint64_t>(most * l2_bytes / kWholeL2Bytes);
    const std::int64_t side =
        std::clamp(static_cast<std::int64_t>(std::bit_floor(share)), kLeastSide, most);
    // Backward in a smaller L2, tiles are tall: the sums of dK and dV of all keys are read and
    // written once for each of them, and come from beyond L2.
    const bool tall = !forward && l2_bytes < kWholeL2Bytes;
    b.block_kv = side;
    b.tile_q = round_down(tall ? kTallTileRows : side, panel);
  }

  // A block mask's rows of blocks are never straddled: a tile holds one, or an equal part of one.
  std::int64_t rows = p.seq_q;
  if (p.block_mask) rows = std::min(rows, p.block_q);
  rows = std::max<std::int64_t>(rows, 1);
  b.tile_q = std::min(b.tile_q, round_up(rows, isa.lanes));
  const std::int64_t heads = std::max<std::int64_t>(p.batch * p.heads_q, 1);
  const auto tasks = [&] { return heads * ((p.seq_q + b.tile_q - 1) / b.tile_q); };
  // Whole heads to each thread are even shares already: smaller tiles then only keep a thread that
  // is held up from holding up all. One thread alone, and bf16's backward pass, gain by large ones.
  const bool whole_heads = heads % p.threads == 0;
  const bool small_tiles = forward && (isa.pack_strip == nullptr || p.threads > 1);
  const std::int64_t per_thread = whole_heads ? (small_tiles ? 4 : 2) : kTasksPerThread;
  while (b.tile_q > panel && tasks() < per_thread * p.threads) {
    b.tile_q = std::max(round_up(b.tile_q / 2, panel), panel);
  }
  const std::int64_t parts = (rows + b.tile_q - 1) / b.tile_q;
  if (p.block_mask) b.tile_q = round_up((rows + parts - 1) / parts, isa.lanes);
  b.block_kv = std::min(b.block_kv, round_up(std::max<std::int64_t>(p.seq_kv, 1),
                                             isa.pack_strip != nullptr ? 32 : isa.lanes));
  return b;
}

std::string to_string(const Blocking& b, const Isa& isa) {
  return formatted("tile_q={} block_kv={} register_tile={}x{}", b.tile_q, b.block_kv, isa.tile_rows,
                   isa.tile_vectors * isa.lanes);
}

}  // namespace tessera::cpu
