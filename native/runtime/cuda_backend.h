// The CUDA backend is a separate shared object, opened for the first CUDA device, so that the addon
// runs without a GPU.
#pragma once

#include <memory>
#include <string>

#include "ops/ops.h"

namespace uniproc {

// Sets the shared object's file, for the whole process. Default: uniproc_cuda.so next to the addon.
// Has no effect on a backend that is already loaded.
void setCudaBackendFile(std::string file);

// Returns the backend of device `index`, for the calling thread. Throws Error DEVICE_FAILED if the
// shared object is missing or cannot be loaded, or if the device does not exist.
std::unique_ptr<Ops> openCudaBackend(int index);

}  // namespace uniproc
