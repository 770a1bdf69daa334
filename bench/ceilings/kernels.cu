#include <cuda_bf16.h>

#include "ceilings/kernels.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::ceilings {
namespace {

constexpr int kThreads = 1024;
constexpr int kBlocksPerMultiprocessor = 2;
// Loads in flight per thread: 32 registers for each of 2,048 threads allow no more.
constexpr int kLoads = 4;

// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): 64 random bits of an index.
__device__ uint64_t randomBits(uint64_t index) {
  uint64_t z = index * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Two normal values at a time (Box and Muller 1958).
__global__ void fillRandomKernel(__nv_bfloat162* out, size_t pairs, float std, uint64_t seed) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < pairs; i += stride) {
    const uint64_t bits = randomBits(i ^ (seed << 40));
    const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
    const float angle = static_cast<float>(bits & 0xffffff) * (0x1p-24f * 6.2831853f);
    const float radius = std * sqrtf(-2.0f * logf(u));
    out[i] = __floats2bfloat162_rn(radius * __cosf(angle), radius * __sinf(angle));
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    readAllKernel(const uint4* data, size_t count, uint4* sink) {
  const size_t stride = size_t{gridDim.x} * kThreads;
  uint4 sum = {0, 0, 0, 0};
  const auto add = [&sum](const uint4& value) {
    sum.x ^= value.x;
    sum.y ^= value.y;
    sum.z ^= value.z;
    sum.w ^= value.w;
  };
  size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kLoads - 1) * stride < count; i += kLoads * stride) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) loaded[k] = __ldcs(data + i + k * stride);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) add(loaded[k]);
  }
  for (; i < count; i += stride) add(__ldcs(data + i));
  // Almost never true for random data, but the compiler cannot know.
  if (sum.x == 1 && sum.y == 2 && sum.z == 3 && sum.w == 4) *sink = sum;
}

}  // namespace

void fillRandom(void* out, size_t count, float std, uint64_t seed, cudaStream_t stream) {
  fillRandomKernel<<<4096, 256, 0, stream>>>(static_cast<__nv_bfloat162*>(out), count / 2, std,
                                             seed);
  cuda::check(cudaGetLastError(), "fillRandom");
}

void readAll(const void* data, size_t bytes, void* sink, int numMultiprocessors,
             cudaStream_t stream) {
  readAllKernel<<<kBlocksPerMultiprocessor * numMultiprocessors, kThreads, 0, stream>>>(
      static_cast<const uint4*>(data), bytes / sizeof(uint4), static_cast<uint4*>(sink));
  cuda::check(cudaGetLastError(), "readAll");
}

}  // namespace uniproc::ceilings
