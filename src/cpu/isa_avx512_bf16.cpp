#include "cpu/kernel/matrix_isa.hpp"
#include "cpu/simd/avx512_bf16.hpp"

namespace tessera::cpu {

const Isa kIsaAvx512Bf16 = make_matrix_isa<Avx512Bf16>();

}  // namespace tessera::cpu
