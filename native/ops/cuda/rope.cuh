// Norm and rotation of a head of q or k, shared by the kernels that apply them. Every operation
// names its rounding, so that the compiler fuses the same ones in every kernel and all kernels give
// the same bits.
#pragma once

#include "ops/cuda/device_math.cuh"

namespace uniproc::cuda {

// Adjacent lanes that share a head, each with N elements of its first half and their partners in
// the second: a power of two up to 32.
template <int N>
__host__ __device__ constexpr int32_t lanesPerHead(int32_t headDim) {
  int32_t lanes = 1;
  while (lanes < kWarpSize && lanes * N < headDim / 2) lanes *= 2;
  return lanes;
}

template <int N>
__device__ inline float addSquares(float sum, const float (&low)[N], const float (&high)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sum = __fadd_rn(sum, __fmaf_rn(high[n], high[n], __fmul_rn(low[n], low[n])));
  }
  return sum;
}

// 1 / rms of a head from its lanes' sums of squares; every lane gets it.
__device__ inline float headFactor(float sum, int32_t lanesPerHead, int32_t headDim, float eps) {
  for (int offset = lanesPerHead / 2; offset > 0; offset /= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, offset));
  }
  return rsqrtf(__fadd_rn(__fdiv_rn(sum, static_cast<float>(headDim)), eps));
}

// Rounds as rmsNorm.
template <class T, int N>
__device__ inline void normalize(float (&x)[N], float factor, const float (&weights)[N],
                                 float offset) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const float scaled = __fmul_rn(x[n], factor);
    x[n] = offset == 0.0f ? __fmul_rn(rounded<T>(scaled), weights[n])
                          : __fmul_rn(scaled, __fadd_rn(weights[n], offset));
  }
}

template <int N>
__device__ inline void rotate(float (&low)[N], float (&high)[N], const float (&cos)[N],
                              const float (&sin)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const float rotated = __fmaf_rn(low[n], cos[n], -__fmul_rn(high[n], sin[n]));
    high[n] = __fmaf_rn(high[n], cos[n], __fmul_rn(low[n], sin[n]));
    low[n] = rotated;
  }
}

}  // namespace uniproc::cuda
