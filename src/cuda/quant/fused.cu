// All passes of the default scheme in one launch: means, largest magnitudes, then integers and
// codes.
//
// Thread blocks stay and take jobs, kTileTokens rows of a tensor each, in the order of a counter.
// Planes of K and V (of Q, too, where it is smoothed) are reduced a chunk at a time, then their
// means computed. Chunks are converted so far behind their statistics that these are there, and so
// close that their rows are still in L2: from memory every row comes once. A block that needs what
// others compute waits for it; that always has a smaller number, so whoever waits, waits for blocks
// that run.
//
// One warp of a block takes numbers, finds out where the rows lie, which is some hundred
// instructions, and asks for them in L2 while the others are at the job before. It is not further
// ahead: others would wait for what lies in line here.
#include <algorithm>

#include "cuda/host/launch.hpp"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/reduce.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/quant/fused_jobs.cuh"

namespace tessera::cuda {
namespace {

/// Rows in global memory.
struct GlobalRows {
  template <typename T>
  struct Column {
    const T* first;
    std::int64_t stride;
    __device__ __forceinline__ const T* row(int i) const { return first + i * stride; }
  };
  template <typename T>
  __device__ __forceinline__ Column<T> at(const Source& source, const TileRows& rows,
                                          int column) const {
    return {row_of<const T>(source.rows, rows.b, rows.h, rows.first) + column,
            source.rows.stride_s};
  }
  /// kLast: nobody reads them again.
  template <bool kLast, typename Vector>
  __device__ __forceinline__ static Vector read(const Vector* from) {
    return kLast ? __ldcs(from) : __ldg(from);
  }
  /// What other blocks have written.
  template <typename Number>
  __device__ __forceinline__ static Number read_computed(const Number* from) {
    return __ldcg(from);
  }

  std::uint32_t* words;
};

template <typename T, int kChunks>
class FusedBlock {
  using Team = TileTeam<T, kChunks, 1, GlobalRows>;

 public:
  __device__ FusedBlock(const Parameters& p, const FusedTarget& to, Shared<kChunks>& shared,
                        std::uint32_t* words)
      : p_(p), to_(to), team_(p, to, shared, {words}) {}

  /// All threads that work call it; afterwards all are done.
  __device__ __forceinline__ void run(const Job& job) {
    if (job.step == Step::skip) return Team::sync();
    const Source& source = source_of(to_, job.tensor);
    const TileRows& rows = job.rows;
    int* const reduced = state(job.tensor, rows);
    int* const ready = reduced + 1;
    if (job.step == Step::reduce) {
      if (job.tensor == kV) {
        team_.reduce_largest(source, rows, largest_of(rows));
      } else if (job.tensor == kK) {
        team_.template sum<kOfKeys>(source, rows, sums_of(kK, rows, rows.row));
      } else {
        team_.template sum<kOfQueries>(source, rows, sums_of(kQ, rows, rows.row));
      }
      Team::sync();
      if (threadIdx.x == 0) ptx::add_release(reduced, 1);
      return;
    }
    float* means = means_of(to_, job.tensor);
    if (means != nullptr) means += rows.sequence_plane * source.columns;
    if (job.step == Step::finish) {
      wait(reduced, job.tiles);
      const float* const sums = sums_of(job.tensor, rows, rows.row - rows.begin);
      team_.finish_mean(
          source, rows,
          [&](int block, int column) {
            return __ldcg(reinterpret_cast<const float4*>(
                sums + static_cast<std::int64_t>(block) * source.columns + column));
          },
          means);
      Team::sync();
      if (threadIdx.x == 0) ptx::add_release(ready, 1);
      return;
    }
    if (job.tensor == kV) {
      wait(reduced, job.tiles);
      team_.quantise_values(source, rows, largest_of(rows));
    } else if (means != nullptr) {
      wait(ready, 1);
      team_.template quantise_rows<true>(job.tensor, source, rows, means);
    } else {
      team_.template quantise_rows<false>(job.tensor, source, rows, nullptr);
    }
    Team::sync();
  }

 private:
  static constexpr int kOfKeys = static_cast<int>(::tessera::quant::kKeyBlock);
  static constexpr int kOfQueries = static_cast<int>(::tessera::quant::kQueryBlock);

  /// Sums of blocks from `row` of the workspace on.
  __device__ __forceinline__ float* sums_of(Tensor tensor, const TileRows& rows, int row) const {
    const Source& source = source_of(to_, tensor);
    const int tokens = tensor == kQ ? kOfQueries : kOfKeys;
    return (tensor == kQ ? to_.q_sums : to_.k_sums) +
           (rows.plane * (source.padded_rows / tokens) + row / tokens) * source.columns;
  }
  __device__ __forceinline__ std::uint32_t* largest_of(const TileRows& rows) const {
    return reinterpret_cast<std::uint32_t*>(to_.v_largest) + rows.sequence_plane * to_.v.columns;
  }

  /// Two numbers of a plane: tiles that have been reduced, and whether the mean is there.
  __device__ int* state(Tensor tensor, const TileRows& rows) const {
    const int first = tensor == kK ? 0 : tensor == kV ? 1 : 2;
    return to_.state + 2 * (std::int64_t{first} * p_.batch * p_.heads_kv + rows.sequence_plane);
  }

  /// Until a count has come so far.
  __device__ __forceinline__ static void wait(const int* count, int enough) {
    if (threadIdx.x == 0) {
      while (ptx::load_acquire(count) < enough) __nanosleep(32);
    }
    Team::sync();
  }

  const Parameters& p_;
  const FusedTarget& to_;
  const Team team_;
};

template <int kChunks>
inline constexpr int kBlockThreads = kSlots* kChunks + kWarpSize;

template <typename T, int kChunks>
__global__ void __launch_bounds__(kBlockThreads<kChunks>, kResidentThreads<T> / (kSlots * kChunks))
    quantise_all(const __grid_constant__ Parameters p, const __grid_constant__ FusedTarget target,
                 const __grid_constant__ Order order) {
  __shared__ __align__(16) Shared<kChunks> shared;
  __shared__ __align__(16) Words<kChunks> words;
  __shared__ Job job;
  __shared__ __align__(8) std::uint64_t barriers[2];
  const std::uint32_t full = ptx::shared_address(&barriers[0]);
  const std::uint32_t empty = ptx::shared_address(&barriers[1]);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init(empty, ptx::kWarpArrivals > 1 ? kSlots * kChunks : 1);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= kSlots * kChunks) {
    Finder<T> finder(p, target, order);
    for (unsigned parity = 0;; parity ^= 1) {
      const Job next = finder.next();
      ptx::mbarrier_wait(empty, parity ^ 1);
      if (threadIdx.x % kWarpSize == 0) {
        job = next;
        ptx::mbarrier_arrive(full);
      }
      if (next.step == Step::none) return;
    }
  }
  FusedBlock<T, kChunks> block(p, target, shared, words);
  for (unsigned parity = 0;; parity ^= 1) {
    ptx::mbarrier_wait(full, parity);
    if (job.step == Step::none) return;
    block.run(job);
    if (ptx::kWarpArrivals > 1 || threadIdx.x == 0) ptx::mbarrier_arrive(empty);
  }
}

}  // namespace

bool fused_takes(const Source& source) {
  return source.rows.vectors && source.columns % 8 == 0 && source.columns <= 256;
}

Status quantise_fused(const Parameters& p, const FusedTarget& target, int multiprocessors,
                      cudaStream_t stream) {
  const int columns = std::max(target.q.columns, target.v.columns);
  return for_dtype(target.q.dtype, [&]<typename T>(T) {
    return for_chunks(columns, [&](auto chunks) {
      constexpr int kResident = kResidentThreads<T> / (kSlots * chunks());
      const std::int64_t most = std::int64_t{multiprocessors} * kResident;
      const Order order = make_order(p, target, 3 * most);
      const std::int64_t jobs = std::int64_t{order.chunks + order.ahead} * order.each();
      return launch("quantise", quantise_all<T, chunks()>, std::min(jobs, most),
                    kBlockThreads<chunks()>, 0, stream, p, target, order);
    });
  });
}

}  // namespace tessera::cuda
