// Storage types of the 16-bit floats. The instruction-set-specific translation units use these
// instead of core/half.hpp: that header's inline functions, compiled for AVX-512, must not become
// the copy that the linker keeps for everybody.
#pragma once

#include <cstdint>

namespace tessera::cpu {

struct f16 {
  std::uint16_t bits;
};

struct bf16 {
  std::uint16_t bits;
};

}  // namespace tessera::cpu
