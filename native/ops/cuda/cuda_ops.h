#pragma once

#include "ops/ops.h"

namespace uniproc {

// All that the CUDA backend's shared object exports.
extern "C" {

// Opens device `index`; all later calls must come from the calling thread. The caller has checked
// that the driver has the device and supports the runtime below. Throws Error CUDA_UNAVAILABLE if
// this build has no kernels for the device, DEVICE_FAILED if it cannot be opened, OUT_OF_MEMORY if
// its memory is full.
__attribute__((visibility("default"))) Ops* uniprocMakeCudaOps(int index);

// The version of the CUDA runtime that is linked in, 13000 for 13.0.
__attribute__((visibility("default"))) extern const int uniprocCudaRuntimeVersion;

// The architectures that the kernels were compiled for: '80, 90a-real'.
__attribute__((visibility("default"))) extern const char uniprocCudaArchitectures[];

}  // extern "C"

}  // namespace uniproc
