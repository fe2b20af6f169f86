// Precision of the two matrix products.
#pragma once

#include <cstdint>

namespace tessera {

/// exact: products in the input dtype with f32 accumulation (FlashAttention). The other values name
/// SageAttention2's schemes; no implementation in the table accepts them yet, so asking for one
/// gives StatusCode::unsupported with that reason.
enum class Precision : std::uint8_t { exact = 0, sage8 = 1, sage4 = 2, adaptive = 3 };

}  // namespace tessera
