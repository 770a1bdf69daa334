// Every call of the CUDA runtime goes through check(), so that no failure passes unseen.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "base/error.h"

namespace uniproc::cuda {

// 'an illegal memory access was encountered (cudaErrorIllegalAddress)'
inline std::string describe(cudaError_t status) {
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

// '; 1048576 bytes are free of 150754820096', or nothing where that cannot be told.
inline std::string freeMemory() {
  size_t free = 0;
  size_t total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return {};
  }
  return "; " + std::to_string(free) + " bytes are free of " + std::to_string(total);
}

// Throws Error DEVICE_FAILED naming the call: check(cudaMemcpyAsync(...), "cudaMemcpyAsync"). The
// driver needs memory of its own too, for kernels at their first launch, graphs or pinned pages:
// where it has none the Error is OUT_OF_MEMORY, since the device goes on.
inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // the next call must not report this one's failure
  const std::string message = std::string(call) + " failed: " + describe(status);
  if (status == cudaErrorMemoryAllocation) throw Error("OUT_OF_MEMORY", message + freeMemory());
  throw Error("DEVICE_FAILED", message);
}

}  // namespace uniproc::cuda
