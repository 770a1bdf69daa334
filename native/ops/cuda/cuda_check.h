// check() wraps every call of the CUDA runtime, so that no failure is missed.
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

// '; 1048576 of 150754820096 bytes are free', or empty if the driver cannot report it.
inline std::string freeMemory() {
  size_t free = 0;
  size_t total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return {};
  }
  return "; " + std::to_string(free) + " of " + std::to_string(total) + " bytes are free";
}

// Throws Error DEVICE_FAILED, which names the call: check(cudaMemcpyAsync(...), "cudaMemcpyAsync").
// Throws OUT_OF_MEMORY if the driver lacks memory of its own (for first launches, graphs, pinned
// pages), since the device still works then.
inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // clear the error for the next call
  const std::string message = std::string(call) + " failed: " + describe(status);
  if (status == cudaErrorMemoryAllocation) throw Error("OUT_OF_MEMORY", message + freeMemory());
  throw Error("DEVICE_FAILED", message);
}

}  // namespace uniproc::cuda
