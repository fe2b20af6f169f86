// How CUDA kernels are launched; the same for every row.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <tuple>

#include "tessera/status.hpp"

namespace tessera::cuda {

/// The blocks of a launch, and how they start.
struct LaunchShape {
  std::int64_t blocks;  ///< A multiple of `cluster`; 0 launches nothing.
  int threads;
  std::size_t shared_bytes = 0;
  int cluster = 1;  ///< Blocks of a cluster (sm_90).
  /// Its blocks may start as soon as all of the kernel before it on the stream have called
  /// release_next_launch() or ended; what that kernel wrote is there after wait_for_launch()
  /// (ptx/launches.cuh, sm_90).
  bool overlaps = false;
};

/// Launches `kernel` on `stream` of the current device with pointers to its arguments. An error
/// becomes a status that names the kernel.
Status launch_kernel(std::string_view name, const void* kernel, const LaunchShape& shape,
                     void** arguments, cudaStream_t stream);

/// Blocks of the largest cluster of `kernel`, a power of two up to `most`, of which the current
/// device places at least one; 0 if it does not say so.
int largest_cluster(const void* kernel, int threads, std::size_t shared_bytes, int most);

/// launch_kernel with the arguments themselves, converted to what the kernel takes.
template <typename... Wanted, typename... Given>
Status launch(std::string_view name, void (*kernel)(Wanted...), const LaunchShape& shape,
              cudaStream_t stream, const Given&... arguments) {
  std::tuple<Wanted...> values(arguments...);
  void* pointers[sizeof...(Wanted)];
  std::apply(
      [&](auto&... value) {
        std::size_t n = 0;
        ((pointers[n++] = &value), ...);
      },
      values);
  return launch_kernel(name, reinterpret_cast<const void*>(kernel), shape, pointers, stream);
}

/// The same for blocks without a cluster that wait for the kernel before them.
template <typename... Wanted, typename... Given>
Status launch(std::string_view name, void (*kernel)(Wanted...), std::int64_t blocks, int threads,
              std::size_t shared_bytes, cudaStream_t stream, const Given&... arguments) {
  return launch(name, kernel, LaunchShape{blocks, threads, shared_bytes}, stream, arguments...);
}

}  // namespace tessera::cuda
