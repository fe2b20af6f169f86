#include "cpu/kernel/sage_matrix.hpp"
#include "cpu/simd/sage_amx.hpp"

namespace tessera::cpu {

const SageIsa kSageAmx = make_sage_matrix_isa<SageAmx>(kIsaAmx);

}  // namespace tessera::cpu
