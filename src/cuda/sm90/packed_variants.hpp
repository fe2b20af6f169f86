// The kernels of row cuda_split_kv_sm90 that are compiled.
#pragma once

#include <span>

#include "cuda/sm90/forward_variants.hpp"

namespace tessera::cuda::sm90 {

/// A compiled kernel; config.packed.
struct PackedVariant {
  ForwardConfig config;
  Status (*enqueue)(const Parameters& p, const ForwardMaps& maps, const Packing& packing,
                    const DeviceInfo& device, cudaStream_t stream);
};

std::span<const PackedVariant> packed_variants();

}  // namespace tessera::cuda::sm90
