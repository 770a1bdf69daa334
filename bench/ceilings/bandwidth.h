#pragma once

#include <cuda_runtime_api.h>

namespace uniproc::ceilings {

// Bytes a second that the multiprocessors read from the device's memory.
double readBandwidth(cudaStream_t stream);

// Bytes a second that are copied from pinned host memory to the device.
double copyBandwidth(cudaStream_t stream);

}  // namespace uniproc::ceilings
