#include "cpu/kernel/sage_forward.hpp"
#include "cpu/simd/sage_avx512.hpp"

namespace tessera::cpu {

const SageIsa kSageAvx512 = make_sage_isa<SageAvx512>(kIsaAvx512);

}  // namespace tessera::cpu
