// cuBLASLt's handles and status codes.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "base/error.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::cuda {

// The size that cuBLAS itself uses on Hopper.
constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;

inline void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  static_cast<void>(cudaGetLastError());  // clear an error that cuBLAS may have left
  const std::string message = std::string(call) + " failed: " + cublasLtGetStatusString(status) +
                              " (" + cublasLtGetStatusName(status) + ")";
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw Error("OUT_OF_MEMORY", message + freeMemory());
  throw Error("DEVICE_FAILED", message);
}

struct DestroyCublasHandle {
  void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
};
using CublasHandle = std::unique_ptr<cublasLtContext, DestroyCublasHandle>;

inline CublasHandle makeCublasHandle() {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle), "cublasLtCreate");
  return CublasHandle(handle);
}

}  // namespace uniproc::cuda
