#include "cuda/host/tiles.hpp"

#include <algorithm>

#include "cuda/host/device.hpp"

namespace tessera::cuda {

Tiles tiles_of(const Problem& problem, Side side, int rows, int blocks) {
  const DeviceInfo& device = device_info(problem.device.index);
  const bool of_queries = side == Side::queries;
  const std::int64_t seq = of_queries ? problem.seq_q : problem.seq_kv;
  const std::int64_t per_sequence = (seq + rows - 1) / rows;
  // The blocks of a key head read its K and V; or its queries' Q and d_O, and add to d_q in f32.
  const std::int64_t both_dims = problem.head_dim + problem.head_dim_v;
  const std::int64_t read =
      of_queries ? problem.seq_kv * both_dims * 2
                 : problem.group() * problem.seq_q * (both_dims * 2 + problem.head_dim * 4);
  const std::int64_t key_heads =
      std::max<std::int64_t>(device.l2_bytes / 2 / std::max<std::int64_t>(read, 1), 1);
  Tiles tiles;
  tiles.side = side;
  tiles.rows = rows;
  tiles.per_head = problem.varlen ? per_sequence + problem.batch + 1 : per_sequence * problem.batch;
  tiles.count = tiles.per_head * (of_queries ? problem.heads_q : problem.heads_kv);
  tiles.set =
      key_heads * std::max<std::int64_t>(per_sequence, 1) * (of_queries ? problem.group() : 1);
  tiles.slots = blocks * device.multiprocessors;
  return tiles;
}

bool takes_order(const Problem& problem) {
  return problem.block_mask && !problem.varlen &&
         !(problem.pass == Pass::backward && problem.deterministic);
}

}  // namespace tessera::cuda
