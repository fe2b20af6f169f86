#include "cpu/kernel/sage_forward.hpp"
#include "cpu/simd/sage_avx2.hpp"

namespace tessera::cpu {

const SageIsa kSageAvx2 = make_sage_isa<SageAvx2>(kIsaAvx2);

}  // namespace tessera::cpu
