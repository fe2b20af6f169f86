// How a kernel is given its config.
#pragma once

namespace tessera::cuda {

/// A config as a type. nvcc (13.0) cannot compile the host stub of a __global__ template with a
/// parameter of class type, so kernels take `typename C` and read `C::value`.
template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

}  // namespace tessera::cuda
