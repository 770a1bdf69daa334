#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

// Compiled for the same architectures as all other kernels.
__global__ void anyKernel() { waitForPrevious(); }

bool askDevice() {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, anyKernel) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // clear the error: the launch reports it as well
    return false;
  }
  return attributes.ptxVersion >= 90;  // __CUDA_ARCH__ / 10
}

size_t askSharedBytes() {
  int device = 0;
  int bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
          cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // clear the error: the launch reports it as well
    return 0;
  }
  return static_cast<size_t>(bytes);
}

}  // namespace

size_t maxSharedBytes() {
  thread_local const size_t bytes = askSharedBytes();
  return bytes;
}

bool kernelsWait() {
  thread_local const bool result = askDevice();
  return result;
}

}  // namespace uniproc::cuda
