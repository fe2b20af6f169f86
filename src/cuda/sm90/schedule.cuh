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
  bool cleared;       ///< The counter is 0 already.
  int granule = 0;    ///< Tiles may begin at any multiple of it; 0: of their own size.
};

/// The lengths of works: all alike, known from their place in the sequence, or neither.
enum class Lengths { equal, regular, any };

inline Lengths lengths_of(const Parameters& p) {
  if (p.varlen || p.block_mask.row_offsets != nullptr) return Lengths::any;
  if (p.window_left == kUnbounded && p.window_right == kUnbounded) return Lengths::equal;
  return p.q_lens != nullptr || p.kv_lens != nullptr ? Lengths::any : Lengths::regular;
}

/// Planes whose K and V fit half of the cache.
inline std::int64_t cached_planes(const Parameters& p, int element_bytes,
                                  const DeviceInfo& device) {
  const std::int64_t bytes = std::int64_t{element_bytes} * (p.head_dim + p.head_dim_v) * p.seq_kv;
  return std::max<std::int64_t>(device.l2_bytes / 2 / std::max<std::int64_t>(bytes, 1), 1);
}

/// About `wanted` planes, as many in every section as can be: the last one has the longest works
/// that begin late.
inline std::int64_t alike_sections(std::int64_t wanted, std::int64_t planes) {
  const std::int64_t sections = (planes + wanted - 1) / wanted;
  return (planes + sections - 1) / sections;
}

/// `from` to `most` planes whose works are a multiple of the blocks, which then get sums that are
/// alike by going there and back; 0: there are none. The last section is as full as can be.
inline std::int64_t shared_out_section(std::int64_t from, std::int64_t most, std::int64_t planes,
                                       std::int64_t works_of_plane, std::int64_t blocks) {
  const std::int64_t unit = blocks / std::gcd(blocks, works_of_plane);
  std::int64_t best = 0;
  double best_last = -1;
  for (std::int64_t section = (from + unit - 1) / unit * unit; section <= most; section += unit) {
    const std::int64_t rest = planes % section;
    const double last = rest == 0 ? 1 : static_cast<double>(rest) / static_cast<double>(section);
    if (last > best_last) {
      best = section;
      best_last = last;
    }
  }
  return best;
}

/// Equal works keep the order of the tensors in memory. Blocks on the same K and V at the same time
/// need them once from memory: 8 are enough, and 4 where the cache holds the rest; under a block
/// mask they are at different keys, which only the cache brings together. Blocks count works of
/// unequal lengths, unless they are shared out as evenly without: the counter takes a node that
/// clears it on `stream`. Fails if there are more works than int counts.
inline Status make_schedule(std::string_view kernel, const Parameters& p, const Division& division,
                            int* counter, const DeviceInfo& device, cudaStream_t stream,
                            Schedule& schedule) {
  const std::int64_t works = tiles_per_head(p, p.seq_q, division.tile_m) * p.heads_q;
  if (works > std::numeric_limits<int>::max()) {
    return Status(StatusCode::unsupported, std::string(kernel) + ": more tiles than int counts");
  }
  const Lengths lengths = lengths_of(p);
  const std::int64_t blocks = device.multiprocessors;
  const std::int64_t planes = std::max<std::int64_t>(std::int64_t{p.batch} * p.heads_kv, 1);
  const std::int64_t cached = cached_planes(p, division.element_bytes, device);
  const std::int64_t wanted = std::clamp(cached, std::max<std::int64_t>(blocks / 8, 1),
                                         std::max<std::int64_t>(blocks / 4, 1));
  std::int64_t section = 1;
  bool counts = false;
  if (p.block_mask.row_offsets != nullptr) {
    section = cached;
    counts = true;
  } else if (lengths != Lengths::equal) {
    section = alike_sections(wanted, planes);
    counts = works > blocks;
  }
  if (lengths == Lengths::regular && counts) {
    const std::int64_t even =
        shared_out_section((wanted * 3 + 3) / 4, std::clamp(cached, wanted * 3 / 2, wanted * 4),
                           planes, works / planes, blocks);
    counts = even == 0;
    if (!counts) section = even;
  }
  schedule = {
      static_cast<int>(works / std::max(p.heads_q, 1) / (p.varlen ? 1 : std::max(p.batch, 1))),
      static_cast<int>(works), static_cast<int>(std::clamp<std::int64_t>(section, 1, planes)),
      counts && division.counts ? counter : nullptr, lengths != Lengths::equal};
  if (lengths == Lengths::regular && division.granule > 0) {
    const int missing = schedule.tiles * division.tile_m - p.seq_q;
    schedule.missing = missing / division.granule * division.granule;
  }
  if (schedule.counter == nullptr || division.cleared) return {};
  const cudaError_t error = cudaMemsetAsync(counter, 0, sizeof(int), stream);
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  return error_status(error, kernel);
}

}  // namespace tessera::cuda::sm90
