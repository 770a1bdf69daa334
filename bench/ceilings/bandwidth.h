#pragma once

#include <cuda_runtime_api.h>

namespace uniproc::ceilings {

// Bandwidth in bytes per second of reads from device memory by all multiprocessors.
double readBandwidth(cudaStream_t stream);

// Bandwidth in bytes per second of copies from pinned host memory to the device.
double copyBandwidth(cudaStream_t stream);

}  // namespace uniproc::ceilings
