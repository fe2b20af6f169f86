// The kernels of quantise(), one for each pass over a tensor.
#pragma once

#include <cuda_runtime_api.h>

#include <optional>
#include <span>

#include "cuda/algo/parameters.hpp"
#include "cuda/quant/cluster_shape.hpp"
#include "cuda/quant/operands.hpp"
#include "tessera/quant.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// One of q, k and v.
struct Source {
  Rows rows;
  DType dtype = DType::f16;
  bool queries = false;
  int heads = 0, columns = 0;
  int padded_rows = 0;  ///< Of a plane in the workspace.
};

/// What is subtracted from a source; data null: nothing.
struct Means {
  const float* data = nullptr;
  bool of_blocks =
      false;  ///< [plane, block of kTileTokens, channel], else [sequence, head, channel].
};

/// Statistics of the channels of a source over the used tokens of each sequence.
struct Statistics {
  enum class Kind { mean, block_means, largest };

  Source source;
  Kind kind = Kind::mean;
  Means means;              ///< largest: subtracted first.
  float* blocks = nullptr;  ///< [plane, block, channel]: sums or largest of blocks.
  float* out = nullptr;     ///< As Means has them; largest: bits of magnitudes.
};
/// Runs all side by side; they must not depend on each other.
Status compute_statistics(const Parameters& p, std::span<const Statistics> all,
                          cudaStream_t stream);

/// Rows of q or k to integers.
struct RowsTarget {
  Source source;
  Means means;
  ScaleGranularity granularity = ScaleGranularity::thread;
  float levels = 127;
  const float* largest = nullptr;  ///< Magnitudes of channels, for one scale of all.
  std::int8_t* values = nullptr;
  int pitch = 0;        ///< Bytes.
  bool packed = false;  ///< Two integers a byte.
  float* scales = nullptr;
};
Status quantise_rows(const Parameters& p, const RowsTarget& target, cudaStream_t stream);

/// V to E4M3, transposed and permuted.
struct ValuesTarget {
  Source source;
  const float* means = nullptr;
  const float* largest = nullptr;
  std::uint8_t* values = nullptr;
  float* scales = nullptr;
};
Status quantise_values(const Parameters& p, const ValuesTarget& target, cudaStream_t stream);

/// All of these in one launch on sm_90, where smoothing subtracts means of sequences from q and k
/// at most and scales are those of threads.
struct FusedTarget {
  Source q, k, v;
  float levels = 127;
  int pitch = 0;
  float *q_sums = nullptr, *k_sums = nullptr;    ///< Of blocks,
  float *q_means = nullptr, *k_means = nullptr;  ///< null: nothing is subtracted.
  float* v_largest = nullptr;
  std::int8_t* q_values = nullptr;  ///< Null: q has statistics at most.
  std::int8_t* k_values = nullptr;
  std::uint8_t* v_values = nullptr;
  float *q_scales = nullptr, *k_scales = nullptr, *v_scales = nullptr;
  int* counter = nullptr;  ///< kCounterInts: the first is that of jobs.
  int* state = nullptr;    ///< Two of each head of k, v and q of each sequence.
};
/// Whether it takes the rows of a tensor.
bool fused_takes(const Source& source);
Status quantise_fused(const Parameters& p, const FusedTarget& target, int multiprocessors,
                      cudaStream_t stream);

/// The same from shared memory, where the heads of a sequence fit into that of a cluster which
/// `device`, the current one, places, and nobody wants integers of q. Clears the counters itself.
std::optional<ClusterShape> clusters_for(const Parameters& p, const FusedTarget& target,
                                         int device);
Status quantise_in_clusters(const Parameters& p, const FusedTarget& target,
                            const ClusterShape& shape, cudaStream_t stream);

/// V to f16 where that is its dtype, else to bf16; zero where it is not used.
struct HalfValuesTarget {
  Source source;
  const float* means = nullptr;
  void* values = nullptr;
  int pitch = 0;  ///< Elements, a multiple of 8.
};
Status round_values(const Parameters& p, const HalfValuesTarget& target, cudaStream_t stream);

/// q · k̄ of each query.
Status compute_row_offsets(const Parameters& p, const Source& q, const float* k_means,
                           float* offsets, cudaStream_t stream);
/// q̄ · (k − k̄) of each key.
Status compute_key_offsets(const Parameters& p, const Source& k, const Means& q_means,
                           const float* k_means, const QuantisedOperands& to, cudaStream_t stream);

}  // namespace tessera::cuda
