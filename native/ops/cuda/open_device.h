// Which GPU a device is, and whether this build can run on it.
#pragma once

#include <cuda_runtime_api.h>

namespace uniproc::cuda {

// Makes device `index`, of those CUDA_VISIBLE_DEVICES leaves, the calling thread's. Throws Error
// DEVICE_FAILED, saying what was found, where there is no driver or one too old, no such device, or
// a device of compute capability below 8.0.
cudaDeviceProp openDevice(int index);

}  // namespace uniproc::cuda
