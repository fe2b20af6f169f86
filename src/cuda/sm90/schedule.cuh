// From a problem to the order of its works.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>

#include "cuda/algo/sequence.cuh"
#include "cuda/host/device.hpp"
#include "cuda/sm90/schedule.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda::sm90 {

/// How a kernel divides its problem.
struct Division {
  int tile_m;         ///< Queries of a work.
  int element_bytes;  ///< Of K and V.
  bool counts;        ///< Blocks may count works.
  bool cleared;       ///< The counter is 0 already.
};

/// Equal works keep the order of the tensors in memory and need no counter; for others `counter` is
/// cleared on `stream`. Fails if there are more works than int counts.
inline Status make_schedule(std::string_view kernel, const Parameters& p, const Division& division,
                            int* counter, const DeviceInfo& device, cudaStream_t stream,
                            Schedule& schedule) {
  const std::int64_t tiles = tiles_per_head(p, p.seq_q, division.tile_m);
  if (tiles * p.heads_q > std::numeric_limits<int>::max()) {
    return Status(StatusCode::unsupported, std::string(kernel) + ": more tiles than int counts");
  }
  const bool masked_blocks = p.block_mask.row_offsets != nullptr;
  const bool equal =
      p.window_left == kUnbounded && p.window_right == kUnbounded && !p.varlen && !masked_blocks;
  // Blocks on the same K and V at the same time need them once from memory; 8 are enough. Under a
  // block mask they are at different keys, which only the cache brings together.
  const std::int64_t plane_bytes =
      std::int64_t{division.element_bytes} * (p.head_dim + p.head_dim_v) * p.seq_kv;
  const std::int64_t cached = device.l2_bytes / 2 / std::max<std::int64_t>(plane_bytes, 1);
  const std::int64_t planes = equal ? 1
                              : masked_blocks
                                  ? cached
                                  : std::max<std::int64_t>(cached, device.multiprocessors / 8);
  schedule = {static_cast<int>(p.varlen ? tiles : tiles / std::max(p.batch, 1)),
              static_cast<int>(tiles * p.heads_q),
              static_cast<int>(std::clamp<std::int64_t>(
                  planes, 1, std::max<std::int64_t>(std::int64_t{p.batch} * p.heads_kv, 1))),
              equal || !division.counts ? nullptr : counter};
  if (schedule.counter == nullptr || division.cleared) return {};
  const cudaError_t error = cudaMemsetAsync(counter, 0, sizeof(int), stream);
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  return error_status(error, kernel);
}

}  // namespace tessera::cuda::sm90
