// Shared by the kernels: element types and conversions, vector accesses, and warp and block
// reductions with a fixed order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/cuda/alignment.h"
#include "ops/ops.h"

namespace uniproc::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__host__ __device__ constexpr T ceilDiv(T value, T divisor) {
  return (value + divisor - 1) / divisor;
}

// Elements -----------------------------------------------------------------------------------

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__nv_fp8_e4m3 x) { return static_cast<float>(x); }

// Rounds to nearest, ties to even.
template <class T>
__device__ inline T narrow(float x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_fp8_e4m3>) {
    return __nv_fp8_e4m3(x);
  } else if constexpr (std::is_same_v<T, int8_t>) {
    return static_cast<int8_t>(fminf(fmaxf(rintf(x), -127.0f), 127.0f));
  } else if constexpr (std::is_same_v<T, uint8_t>) {
    return static_cast<uint8_t>(fminf(fmaxf(rintf(x), 0.0f), 255.0f));
  } else {
    return x;
  }
}

// x rounded to type T.
template <class T>
__device__ inline float rounded(float x) {
  return widen(narrow<T>(x));
}

__device__ inline float silu(float x) { return __fdividef(x, 1.0f + expf(-x)); }

__device__ inline float gelu(float x, bool isTanh) {
  const float share = isTanh ? tanhf(0.79788456f * (x + 0.044715f * x * x * x))  // sqrt(2 / pi)
                             : erff(x * 0.70710678f);                            // 1 / sqrt(2)
  return 0.5f * x * (1.0f + share);
}

// Activation::kClampedSwiglu, with comparisons that keep NaN.
__device__ inline float clampedSwiglu(float gate, float up) {
  gate = gate > kSwigluLimit ? kSwigluLimit : gate;
  up = up > kSwigluLimit ? kSwigluLimit : up < -kSwigluLimit ? -kSwigluLimit : up;
  return gate / (1.0f + expf(-kSwigluAlpha * gate)) * (up + 1.0f);
}

// activation(gate) * up of numbers of type T, to be rounded to T.
template <class T>
__device__ inline float activated(Activation activation, float gate, float up) {
  switch (activation) {
    case Activation::kSilu:
      return rounded<T>(silu(gate)) * up;
    case Activation::kClampedSwiglu:
      return clampedSwiglu(gate, up);
    case Activation::kGelu:
    case Activation::kGeluTanh:
      break;
  }
  return rounded<T>(gelu(gate, activation == Activation::kGeluTanh)) * up;
}

// Calls run(T{}) with the C++ type of `dtype`.
template <class Run>
void withType(DType dtype, Run run) {
  switch (dtype) {
    case DType::kFloat32:
      return run(float{});
    case DType::kFloat16:
      return run(__half{});
    case DType::kBFloat16:
      return run(__nv_bfloat16{});
  }
}

// The same for a storage type; uint8_t for a packed one.
template <class Run>
void withStorageType(StorageType type, Run run) {
  switch (type) {
    case StorageType::kFloat8E4M3:
      return run(__nv_fp8_e4m3{});
    case StorageType::kInt8:
      return run(int8_t{});
    case StorageType::kUInt4:
    case StorageType::kFloat4E2M1:
      return run(uint8_t{});  // two elements
    default:
      return withType(dtypeOf(type), run);
  }
}

// Whether keys and values of type C in the KV cache are divided by scales.
template <class C>
constexpr bool kIsFloat8 = std::is_same_v<C, __nv_fp8_e4m3>;

// Calls run(T{}, C{}) with the type of activations and that of the KV cache.
template <class Run>
void withCacheType(DType dtype, bool isFloat8, Run run) {
  withType(dtype, [&]<class T>(T element) {
    if (isFloat8) return run(element, __nv_fp8_e4m3{});
    return run(element, element);
  });
}

// Vectors ------------------------------------------------------------------------------------

// Elements in one access: 16 bytes if the addresses allow it, else one element.
template <class T>
constexpr int kElementsPerAccess = kAccessBytes / static_cast<int>(sizeof(T));

// N elements of T, N a power of two, accessed in up to 16 bytes at once. Addresses must be
// multiples of 16 bytes, or of the vector's size if smaller.
template <class T, int N>
struct Vector {
  T elements[N];
};

template <int kBytes>
struct Access {
  using Type = uint4;
};
template <>
struct Access<8> {
  using Type = uint2;
};
template <>
struct Access<4> {
  using Type = uint32_t;
};
template <>
struct Access<2> {
  using Type = uint16_t;
};
template <>
struct Access<1> {
  using Type = uint8_t;
};

template <int N, class T>
__device__ inline Vector<T, N> loadVector(const T* from) {
  using Word = typename Access<static_cast<int>(sizeof(T)) * N>::Type;
  constexpr int kWords = static_cast<int>(sizeof(T)) * N / static_cast<int>(sizeof(Word));
  Word words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(from)[i];
  Vector<T, N> vector;
  std::memcpy(static_cast<void*>(&vector), words, sizeof words);
  return vector;
}

template <int N, class T>
__device__ inline void storeVector(T* to, const Vector<T, N>& vector) {
  using Word = typename Access<static_cast<int>(sizeof(T)) * N>::Type;
  constexpr int kWords = static_cast<int>(sizeof(T)) * N / static_cast<int>(sizeof(Word));
  Word words[kWords];
  std::memcpy(words, static_cast<const void*>(&vector), sizeof words);
#pragma unroll
  for (int i = 0; i < kWords; ++i) reinterpret_cast<Word*>(to)[i] = words[i];
}

// Loads N elements of any type, widened to float32.
template <int N, class T>
__device__ inline void loadWidened(const T* from, float (&to)[N]) {
  const Vector<T, N> vector = loadVector<N>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = widen(vector.elements[i]);
}

template <int N, class T>
__device__ inline void storeNarrowed(T* to, const float (&from)[N]) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.elements[i] = narrow<T>(from[i]);
  storeVector<N>(to, vector);
}

// Reductions ---------------------------------------------------------------------------------

// Reduces the values of a warp, or of each group of kLanes adjacent lanes. Every lane gets the
// result; all lanes of the warp must call.
template <int kLanes = kWarpSize, class T, class Combine>
__device__ inline T warpReduce(T value, Combine combine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

template <int kLanes = kWarpSize, class T>
__device__ inline T warpSum(T value) {
  return warpReduce<kLanes>(value, [](T a, T b) { return a + b; });
}

template <int kLanes = kWarpSize>
__device__ inline float warpMax(float value) {
  return warpReduce<kLanes>(value, [](float a, float b) { return fmaxf(a, b); });
}

// Reduces the values of a block. Every thread gets the result; all must call. Combining `identity`
// with a value gives that value. `scratch`: shared memory of one T per warp. blockDim.x is a
// multiple of 32, the other dimensions are 1. Starts with a barrier, so that consecutive reductions
// can share one scratch.
template <class T, class Combine>
__device__ inline T blockReduce(T value, T identity, T* scratch, Combine combine) {
  const unsigned warp = threadIdx.x / kWarpSize;
  const unsigned lane = threadIdx.x % kWarpSize;
  const unsigned numWarps = blockDim.x / kWarpSize;
  value = warpReduce(value, combine);
  __syncthreads();
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return warpReduce(lane < numWarps ? scratch[lane] : identity, combine);
}

template <class T>
__device__ inline T blockSum(T value, T* scratch) {
  return blockReduce(value, T{}, scratch, [](T a, T b) { return a + b; });
}

template <class T>
__device__ inline T blockMax(T value, T lowest, T* scratch) {
  return blockReduce(value, lowest, scratch, [](T a, T b) { return a < b ? b : a; });
}

}  // namespace uniproc::cuda
