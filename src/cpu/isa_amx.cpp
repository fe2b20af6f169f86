#include "cpu/kernel/matrix_isa.hpp"
#include "cpu/simd/amx.hpp"

namespace tessera::cpu {

const Isa kIsaAmx = make_matrix_isa<Amx>();

}  // namespace tessera::cpu
