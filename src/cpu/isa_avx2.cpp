#include "cpu/kernel/isa.hpp"
#include "cpu/simd/avx2.hpp"

namespace tessera::cpu {

const Isa kIsaAvx2 = make_isa<Avx2>();

}  // namespace tessera::cpu
