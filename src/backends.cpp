// The one place that knows every backend: the order of the table.
#include <array>

#include "core/registry.hpp"
#include "cpu/backend.hpp"
#include "cuda/backend.hpp"

namespace tessera {

std::span<const Backend* const> backends() {
  static const std::array<const Backend*, 2> kBackends = {&cpu::backend(), &cuda::backend()};
  return kBackends;
}

}  // namespace tessera
