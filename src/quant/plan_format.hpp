// What an adaptive plan's file says of itself.
#pragma once

namespace tessera::quant {

inline constexpr const char* kPlanFormat = "tessera-adaptive-plan";
inline constexpr int kPlanVersion = 1;

}  // namespace tessera::quant
