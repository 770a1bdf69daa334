// Every call of the CUDA runtime goes through check(), so that no failure passes unseen.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "runtime/error.h"

namespace uniproc::cuda {

// 'an illegal memory access was encountered (cudaErrorIllegalAddress)'
inline std::string describe(cudaError_t status) {
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

// Throws Error DEVICE_FAILED naming the call: check(cudaMemcpyAsync(...), "cudaMemcpyAsync").
inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // the next call must not report this one's failure
  throw Error("DEVICE_FAILED", std::string(call) + " failed: " + describe(status));
}

}  // namespace uniproc::cuda
