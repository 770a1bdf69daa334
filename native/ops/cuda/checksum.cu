#include <cstddef>
#include <cstdint>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 1024;

// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
__device__ uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// data [count], sum [1]: adds a hash of each element and its index, in any order. Grid-stride;
// bound by reading.
__global__ void checksumKernel(const uint16_t* data, size_t count, unsigned long long* sum) {
  const size_t stride = size_t{gridDim.x} * kThreads;
  unsigned long long own = 0;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    own += mix((i << 16 | data[i]) + 0x9e3779b97f4a7c15);
  }
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    own += __shfl_xor_sync(0xffffffff, own, lanes);
  }
  if (threadIdx.x % kWarpSize == 0) atomicAdd(sum, own);
}

}  // namespace

void checksum(const void* data, size_t bytes, uint64_t* sum, cudaStream_t stream) {
  check(cudaMemsetAsync(sum, 0, sizeof *sum, stream), "cudaMemsetAsync");
  checksumKernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const uint16_t*>(data), bytes / 2,
                                                   reinterpret_cast<unsigned long long*>(sum));
}

}  // namespace uniproc::cuda
