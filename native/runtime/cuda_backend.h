// The CUDA backend is a separate shared object, opened for the first CUDA device, so that the addon
// runs without a GPU.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "ops/ops.h"
#include "runtime/cuda_driver.h"

namespace uniproc {

// Sets the shared object's file, for the whole process. Default: uniproc_cuda.so next to the addon.
// Has no effect on a backend that is already loaded.
void setCudaBackendFile(std::string file);

struct CudaBackend {
  std::string file;
  Ops* (*make)(int index) = nullptr;
  int runtimeVersion = 0;     // of the CUDA runtime that is linked in: 13000 for 13.0
  std::string architectures;  // for example '80, 90a-real'
  std::string cublasLt;       // the cuBLASLt that it requires, 'libcublasLt.so.13'; empty: unknown
  std::optional<CudaProblem> problem;  // why it cannot be used
};

// The pip package of a cuBLASLt: "'nvidia-cublas==13.*'" for libcublasLt.so.13.
std::string cublasLtPackage(const std::string& name);

// Loads the shared object, and the cuBLASLt that it requires.
CudaBackend loadCudaBackend();

// Why the driver and the backend cannot use device `index`.
std::optional<CudaProblem> problemOfDevice(const CudaDriver& driver, const CudaBackend& backend,
                                           int index);

// Returns the backend of device `index`, for the calling thread. Throws Error CUDA_UNAVAILABLE with
// the reason and the remedy if this machine or build cannot use the device, OUT_OF_MEMORY if its
// memory is full.
std::unique_ptr<Ops> openCudaBackend(int index);

}  // namespace uniproc
