// The CUDA backend is a shared object of its own, opened when a CUDA device is first asked for, so
// that the addon runs where there is no GPU.
#pragma once

#include <memory>

#include "ops/ops.h"

namespace uniproc {

// The backend on device `index`, for the calling thread. Throws Error DEVICE_FAILED where the
// shared object is not there or cannot be loaded, saying what was looked for, and where it finds no
// such device.
std::unique_ptr<Ops> openCudaBackend(int index);

}  // namespace uniproc
