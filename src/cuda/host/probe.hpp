// A kernel that exists to be asked whether the build has code for a device.
#pragma once

namespace tessera::cuda {

const void* probe_kernel();

}  // namespace tessera::cuda
