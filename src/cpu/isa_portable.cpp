#include "cpu/kernel/isa.hpp"
#include "cpu/simd/portable.hpp"

namespace tessera::cpu {

const Isa kIsaPortable = make_isa<Portable>();

}  // namespace tessera::cpu
