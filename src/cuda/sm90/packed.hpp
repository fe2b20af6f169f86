// The kernels of row cuda_split_kv_sm90.
#pragma once

#include <span>

#include "cuda/sm90/forward.hpp"

namespace tessera::cuda::sm90 {

/// A compiled kernel; config.packed.
struct PackedVariant {
  ForwardConfig config;
  Status (*enqueue)(const Parameters& p, const ForwardMaps& maps, const Packing& packing,
                    const DeviceInfo& device, cudaStream_t stream);
};

std::span<const PackedVariant> packed_variants();

/// Empty if there is a kernel for a problem, else why not.
std::string reject_packed(const Problem& problem);
std::unique_ptr<Kernel> make_packed(const Problem& problem);

}  // namespace tessera::cuda::sm90
