// Launches of kernels for Hopper that may begin early.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string_view>

#include "tessera/status.hpp"

namespace tessera::cuda {

/// How a kernel is launched.
struct Grid {
  int blocks;
  int threads;
  std::size_t shared_bytes;
  bool early = false;  ///< Begins before the stream's last kernel has ended, and waits for it.
};

/// Launches `kernel` on `stream` of the current device. No blocks launch nothing. An error becomes
/// a status that names the kernel.
Status launch_grid(std::string_view name, const void* kernel, const Grid& grid, void** arguments,
                   cudaStream_t stream);

}  // namespace tessera::cuda
