// From a problem to the order of its works.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <limits>
#include <numeric>
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
};

/// The lengths of works: all alike, known from their place in the sequence, or neither.
enum class Lengths { equal, regular, any };

inline Lengths lengths_of(const Parameters& p) {
  if (p.varlen || p.block_mask.row_offsets != nullptr) return Lengths::any;
  if (p.window_left == kUnbounded && p.window_right == kUnbounded) return Lengths::equal;
  return p.q_lens != nullptr || p.kv_lens != nullptr ? Lengths::any : Lengths::regular;
}

/// Planes of a section. Blocks on the same K and V at the same time need them once from memory; 8
/// are enough, and 4 where the cache holds the rest. Under a block mask they are at different keys,
/// which only the cache brings together.
inline std::int64_t section_of(const Parameters& p, int element_bytes, const DeviceInfo& device) {
  const std::int64_t plane_bytes =
      std::int64_t{element_bytes} * (p.head_dim + p.head_dim_v) * p.seq_kv;
  const std::int64_t cached = device.l2_bytes / 2 / std::max<std::int64_t>(plane_bytes, 1);
  if (p.block_mask.row_offsets != nullptr) return std::max<std::int64_t>(cached, 1);
  return std::clamp<std::int64_t>(cached, std::max(device.multiprocessors / 8, 1),
                                  std::max(device.multiprocessors / 4, 1));
}

/// Equal works keep the order of the tensors in memory. Blocks count works of unequal lengths,
/// unless sections that begin with block 0 share them out as evenly: the counter costs a node that
/// clears it on `stream`. Fails if there are more works than int counts.
inline Status make_schedule(std::string_view kernel, const Parameters& p, const Division& division,
                            int* counter, const DeviceInfo& device, cudaStream_t stream,
                            Schedule& schedule) {
  const std::int64_t tiles = tiles_per_head(p, p.seq_q, division.tile_m);
  if (tiles * p.heads_q > std::numeric_limits<int>::max()) {
    return Status(StatusCode::unsupported, std::string(kernel) + ": more tiles than int counts");
  }
  const Lengths lengths = lengths_of(p);
  const int tiles_of_sequence = static_cast<int>(p.varlen ? tiles : tiles / std::max(p.batch, 1));
  const std::int64_t planes = std::max<std::int64_t>(std::int64_t{p.batch} * p.heads_kv, 1);
  std::int64_t section =
      lengths == Lengths::equal ? 1 : section_of(p, division.element_bytes, device);
  bool counts = lengths != Lengths::equal;
  if (lengths == Lengths::regular) {
    // Fewest planes whose works are a multiple of the blocks.
    const std::int64_t even =
        device.multiprocessors / std::gcd(device.multiprocessors, tiles_of_sequence * p.group);
    const std::int64_t rounded = (section + even / 2) / even * even;
    if (rounded > 0) section = rounded;
    counts = rounded == 0 && tiles * p.heads_q > device.multiprocessors;
  }
  schedule = {tiles_of_sequence, static_cast<int>(tiles * p.heads_q),
              static_cast<int>(std::clamp<std::int64_t>(section, 1, planes)),
              counts && division.counts ? counter : nullptr};
  if (schedule.counter == nullptr) return {};
  const cudaError_t error = cudaMemsetAsync(counter, 0, sizeof(int), stream);
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  return error_status(error, kernel);
}

}  // namespace tessera::cuda::sm90
