// RMS norm of a row, shared by the kernels that end in it so that all of them round and sum in the
// same order.
#pragma once

#include <cstdint>

#include "ops/cuda/device_math.cuh"

namespace uniproc::cuda {

constexpr int kMaxNormThreads = 1024;

// Threads for a row of that many accesses, of N elements each: thread t holds up to `held` of them,
// accesses t, t + threads, ...
constexpr int normThreads(int accesses, int held) {
  return ceilDiv(ceilDiv(accesses, held), kWarpSize) * kWarpSize;
}

// values += added, rounded to T.
template <class T, int N>
__device__ inline void addRounded(float (&values)[N], const float (&added)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] = rounded<T>(values[n] + added[n]);
}

template <int N>
__device__ inline void addSquares(float& sum, const float (&values)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) sum += values[n] * values[n];
}

// out [size] = values * factor, rounded to T, times weights; with an offset (Gemma) not rounded
// before, times weights + offset. A thread's first access is `first`, its others follow `stride`
// accesses apart.
template <class T, int N, int kHeld>
__device__ inline void scaleRow(const float (&values)[kHeld][N],
                                const Vector<T, N> (&weights)[kHeld], float factor, int32_t first,
                                int32_t stride, int32_t size, T* out, float offset = 0.0f) {
#pragma unroll
  for (int held = 0; held < kHeld; ++held) {
    const int32_t i = (held * stride + first) * N;
    if (i >= size) break;
    float scaled[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float value = values[held][n] * factor;
      const float weight = widen(weights[held].elements[n]);
      scaled[n] = offset == 0.0f ? rounded<T>(value) * weight : value * (weight + offset);
    }
    storeNarrowed<N>(out + i, scaled);
  }
}

// 1 / rms of a row by the sum of its squares.
__device__ inline float rmsFactor(float squares, int32_t size, float eps) {
  return rsqrtf(squares / static_cast<float>(size) + eps);
}

}  // namespace uniproc::cuda
