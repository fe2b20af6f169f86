// The CUDA backend of a build without a CUDA toolkit: no rows, and the reason.
#include "cuda/backend.hpp"

namespace tessera::cuda {
namespace {

std::string absent() {
  return "this build has no CUDA support; configure with -DTESSERA_CUDA=ON and a CUDA toolkit";
}
int count() { return 0; }
std::vector<std::string> describe() { return {"cuda: " + absent()}; }
void* allocate(std::size_t, Device, void*) { return nullptr; }
void release(void*, Device, void*) {}

Executor* executor(Executor* requested) { return requested; }

}  // namespace

const Backend& backend() {
  static const Backend kBackend = {DeviceType::cuda, {},       absent,  count,
                                   describe,         allocate, release, /*host_readable=*/false,
                                   executor};
  return kBackend;
}

}  // namespace tessera::cuda
