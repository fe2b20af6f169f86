// No byte string makes the .npy reader misbehave, and what it accepts converts without trouble.
#include <cstddef>
#include <cstdint>
#include <span>

#include "io/npy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace tessera;
  const Result<cli::ArrayView> array = cli::parse_npy(std::as_bytes(std::span(data, size)));
  if (!array.ok()) return 0;
  for (DType dtype :
       {DType::f32, DType::f16, DType::bf16, DType::f64, DType::i32, DType::boolean}) {
    const Result<cli::HostTensor> tensor = cli::to_host_tensor(array.value(), dtype);
    if (tensor.ok() && dtype != DType::bf16) (void)cli::npy_header(tensor.value());
  }
  return 0;
}
