// Selects a device's GPU and checks that this build supports it.
#pragma once

#include <cuda_runtime_api.h>

namespace uniproc::cuda {

// Makes device `index`, of those that CUDA_VISIBLE_DEVICES selects, the calling thread's current
// device. Throws Error DEVICE_FAILED, which says what was found, for a missing or old driver, a
// missing device, or a compute capability below 8.0.
cudaDeviceProp openDevice(int index);

}  // namespace uniproc::cuda
