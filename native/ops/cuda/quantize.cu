// Tokens as e4m3 for products with float8 weights.
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 512;
constexpr float kLargest = 448.0f;  // of e4m3
constexpr int kGroupColumns = 128;

// The larger magnitude; infinity for NaN, which fmaxf would drop.
__device__ inline float largerMagnitude(float most, float x) {
  return x == x ? fmaxf(most, fabsf(x)) : INFINITY;
}

template <int kWidth>
__device__ inline float largestOf(const float (&values)[kWidth]) {
  float most = 0.0f;
#pragma unroll
  for (int n = 0; n < kWidth; ++n) most = largerMagnitude(most, values[n]);
  return most;
}

// The largest magnitude of a row; all threads of the block get it.
template <class T>
__device__ inline float largestOfRow(const T* row, int32_t cols, float* scratch) {
  constexpr int kWidth = kElementsPerAccess<T>;
  float most = 0.0f;
  for (auto c = static_cast<int32_t>(threadIdx.x) * kWidth; c < cols; c += kThreads * kWidth) {
    float values[kWidth];
    loadWidened<kWidth>(row + c, values);
    most = fmaxf(most, largestOf(values));
  }
  return blockMax(most, 0.0f, scratch);
}

// The scale that brings `most` to kLargest, NaN if it is not finite. Its inverse is finite.
__device__ inline float scaleOf(float most) {
  constexpr float kLeast = 1e-30f;
  return isinf(most) ? NAN : fmaxf(most, kLeast) / kLargest;
}

template <int kWidth>
__device__ inline void storeQuantized(float (&values)[kWidth], float scale, __nv_fp8_e4m3* to) {
  const float inverse = 1.0f / scale;
#pragma unroll
  for (int n = 0; n < kWidth; ++n) values[n] *= inverse;
  storeNarrowed<kWidth>(to, values);
}

// quantized [numTokens, cols] = x [numTokens, cols] / scale, scales [numTokens]. Grid: one block
// per token. Reads two bytes (once more from L1 or L2) and writes one per element: bound by memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantizeTokensKernel(const T* x, int32_t cols, __nv_fp8_e4m3* quantized, float* scales) {
  constexpr int kWidth = kElementsPerAccess<T>;
  __shared__ float scratch[kThreads / kWarpSize];
  waitForPrevious();
  const auto token = static_cast<int64_t>(blockIdx.x);
  const T* row = x + token * cols;
  const float scale = scaleOf(largestOfRow(row, cols, scratch));
  if (threadIdx.x == 0) scales[token] = scale;
  for (auto c = static_cast<int32_t>(threadIdx.x) * kWidth; c < cols; c += kThreads * kWidth) {
    float values[kWidth];
    loadWidened<kWidth>(row + c, values);
    storeQuantized(values, scale, quantized + token * cols + c);
  }
}

// The same with a scale for each 128 columns, scales [cols / 128, numTokens]; cols is a multiple of
// 128.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantizeGroupsKernel(const T* x, int32_t cols, __nv_fp8_e4m3* quantized, float* scales) {
  constexpr int kWidth = kElementsPerAccess<T>;
  constexpr int kGroupLanes = kGroupColumns / kWidth;
  waitForPrevious();
  const auto token = static_cast<int64_t>(blockIdx.x);
  const auto from = static_cast<int32_t>(threadIdx.x) * kWidth;
  for (int32_t first = 0; first < cols; first += kThreads * kWidth) {
    const int32_t c = first + from;
    float values[kWidth] = {};
    if (c < cols) loadWidened<kWidth>(x + token * cols + c, values);
    const float scale = scaleOf(warpMax<kGroupLanes>(largestOf(values)));
    if (c >= cols) continue;
    if (c % kGroupColumns == 0) scales[int64_t{c / kGroupColumns} * gridDim.x + token] = scale;
    storeQuantized(values, scale, quantized + token * cols + c);
  }
}

}  // namespace

void quantizeTokens(const void* x, int32_t numTokens, int32_t cols, bool byGroup, DType type,
                    void* quantized, float* scales, cudaStream_t stream) {
  withType(type, [&]<class T>(T) {
    if constexpr (!std::is_same_v<T, float>) {
      const auto kernel = byGroup ? quantizeGroupsKernel<T> : quantizeTokensKernel<T>;
      launch(kernel, static_cast<unsigned>(numTokens), kThreads, 0, stream,
             static_cast<const T*>(x), cols, static_cast<__nv_fp8_e4m3*>(quantized), scales);
    }
  });
  check(cudaGetLastError(), "quantizeTokens");
}

}  // namespace uniproc::cuda
