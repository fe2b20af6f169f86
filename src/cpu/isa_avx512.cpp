#include "cpu/kernel/isa.hpp"
#include "cpu/simd/avx512.hpp"

namespace tessera::cpu {

const Isa kIsaAvx512 = make_isa<Avx512>();

}  // namespace tessera::cpu
