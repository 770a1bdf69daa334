// The operations on an NVIDIA GPU, and the one function that the shared object exports.
#pragma once

#include "ops/ops.h"

namespace uniproc {

// The backend on device `index`, which from then on is the calling thread's: that thread makes all
// calls. Throws Error DEVICE_FAILED where the device cannot be had, OUT_OF_MEMORY where it is full.
extern "C" __attribute__((visibility("default"))) Ops* uniprocMakeCudaOps(int index);

}  // namespace uniproc
