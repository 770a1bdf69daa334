#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

// Compiled for the same architectures as all others.
__global__ void anyKernel() { waitForPrevious(); }

bool askDevice() {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, anyKernel) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // the launch fails as well, and says why
    return false;
  }
  return attributes.ptxVersion >= 90;  // what __CUDA_ARCH__ was, / 10
}

}  // namespace

bool kernelsWait() {
  thread_local const bool result = askDevice();
  return result;
}

}  // namespace uniproc::cuda
