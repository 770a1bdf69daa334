#pragma once

#include "ops/ops.h"

namespace uniproc {

// The CUDA backend, and the only function that its shared object exports. Opens device `index`; all
// later calls must come from the calling thread. Throws Error DEVICE_FAILED if the device cannot be
// opened, OUT_OF_MEMORY if its memory is full.
extern "C" __attribute__((visibility("default"))) Ops* uniprocMakeCudaOps(int index);

}  // namespace uniproc
