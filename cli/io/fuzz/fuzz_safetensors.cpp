// No byte string makes the safetensors reader misbehave, and every tensor of a file it accepts
// converts without trouble.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace tessera;
  const Result<cli::Safetensors> file =
      cli::Safetensors::parse(std::as_bytes(std::span(data, size)));
  if (!file.ok()) return 0;
  for (const std::string& name : file->names()) {
    const Result<cli::ArrayView> array = file->tensor(name);
    if (!array.ok()) continue;
    for (DType dtype : {DType::f32, DType::f16, DType::i32, DType::boolean}) {
      (void)cli::to_host_tensor(array.value(), dtype);
    }
  }
  return 0;
}
