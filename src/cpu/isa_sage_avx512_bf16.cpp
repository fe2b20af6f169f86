#include "cpu/kernel/sage_matrix.hpp"
#include "cpu/simd/sage_avx512_bf16.hpp"

namespace tessera::cpu {

const SageIsa kSageAvx512Bf16 = make_sage_matrix_isa<SageAvx512Bf16>(kIsaAvx512Bf16);

}  // namespace tessera::cpu
