// Sums and scales of the residual stream and of queries, and GELU. Bound by device memory, or by
// the launch at the few rows of a decode step.
#include <numeric>

#include "ops/cuda/access.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;

// x [count] *= factor. Grid: one thread per N elements. Reads and writes x once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) scaleElements(T* x, int64_t count, float factor) {
  waitForPrevious();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= count) return;
  float values[N];
  loadWidened<N>(x + i, values);
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] *= factor;
  storeNarrowed<N>(x + i, values);
}

// x [count] *= factor [1] + offset. Grid: one thread per N elements. Reads and writes x once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    scaleElementsBy(T* x, int64_t count, const T* factor, float offset) {
  waitForPrevious();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= count) return;
  const float by = widen(factor[0]) + offset;
  float values[N];
  loadWidened<N>(x + i, values);
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] *= by;
  storeNarrowed<N>(x + i, values);
}

// x [count] = cap * tanh(x / cap). Grid: one thread per N elements. Reads and writes x once.
template <int N>
__global__ void __launch_bounds__(kThreads) softcapElements(float* x, int64_t count, float cap) {
  waitForPrevious();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= count) return;
  float values[N];
  loadWidened<N>(x + i, values);
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] = cap * tanhf(values[n] / cap);
  storeNarrowed<N>(x + i, values);
}

// residual [count] += x. Grid: one thread per N elements. Reads both and writes residual once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) addElements(T* residual, const T* x, int64_t count) {
  waitForPrevious();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= count) return;
  float sums[N];
  float values[N];
  loadWidened<N>(residual + i, sums);
  loadWidened<N>(x + i, values);
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] += values[n];
  storeNarrowed<N>(residual + i, sums);
}

// out [numTokens, width] += sigmoid(gate [numTokens]), rounded to T, times x [numTokens, width],
// the product rounded to T. Grid: (numTokens, width / (256 N)). Reads x and out and writes out
// once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    addGatedRows(const T* x, const T* gate, int64_t width, T* out) {
  waitForPrevious();
  const int64_t col = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  if (col >= width) return;
  const float weight = rounded<T>(1.0f / (1.0f + expf(-widen(gate[blockIdx.x]))));
  const int64_t i = blockIdx.x * width + col;
  float sums[N];
  float values[N];
  loadWidened<N>(out + i, sums);
  loadWidened<N>(x + i, values);
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] += rounded<T>(weight * values[n]);
  storeNarrowed<N>(out + i, sums);
}

// The queries of qkv [numTokens, rowWidth], [numTokens, width], times a factor of their position,
// rounded to T. Grid: (numTokens, width / (256 N)). Reads and writes the queries once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    scaleQueryRows(T* qkv, int64_t rowWidth, int64_t width, const int32_t* positions,
                   ForwardOps::Temperature temperature) {
  waitForPrevious();
  const int64_t col = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  if (col >= width) return;
  const float periods =
      floorf((static_cast<float>(positions[blockIdx.x]) + temperature.shift) / temperature.period);
  const float factor = rounded<T>(1.0f + temperature.beta * logf(1.0f + periods));
  T* x = qkv + blockIdx.x * rowWidth + col;
  float values[N];
  loadWidened<N>(x, values);
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] *= factor;
  storeNarrowed<N>(x, values);
}

template <int N>
unsigned blocksOf(int64_t count) {
  return static_cast<unsigned>(ceilDiv<int64_t>(count, int64_t{kThreads} * N));
}

}  // namespace

void scale(void* x, int64_t count, float factor, DType type, cudaStream_t stream) {
  if (count == 0) return;
  withType(type, [&](auto element) {
    using T = decltype(element);
    withAccess<T>(count, {x}, [&](auto access) {
      constexpr int N = access();
      launch(scaleElements<T, N>, blocksOf<N>(count), kThreads, 0, stream, static_cast<T*>(x),
             count, factor);
    });
  });
}

void scaleBy(void* x, int64_t count, const Weight& factor, DType type, cudaStream_t stream) {
  if (count == 0) return;
  withType(type, [&](auto element) {
    using T = decltype(element);
    withAccess<T>(count, {x}, [&](auto access) {
      constexpr int N = access();
      launch(scaleElementsBy<T, N>, blocksOf<N>(count), kThreads, 0, stream, static_cast<T*>(x),
             count, static_cast<const T*>(factor.data), factor.offset);
    });
  });
}

void softcap(float* x, int64_t count, float cap, cudaStream_t stream) {
  if (count == 0) return;
  withAccess<float>(count, {x}, [&](auto access) {
    constexpr int N = access();
    launch(softcapElements<N>, blocksOf<N>(count), kThreads, 0, stream, x, count, cap);
  });
}

void add(void* residual, const void* x, int64_t count, DType type, cudaStream_t stream) {
  if (count == 0) return;
  withType(type, [&](auto element) {
    using T = decltype(element);
    withAccess<T>(count, {residual, x}, [&](auto access) {
      constexpr int N = access();
      launch(addElements<T, N>, blocksOf<N>(count), kThreads, 0, stream, static_cast<T*>(residual),
             static_cast<const T*>(x), count);
    });
  });
}

void addGated(const void* x, const void* gate, int32_t numTokens, int32_t width, void* out,
              DType type, cudaStream_t stream) {
  if (numTokens == 0) return;
  withType(type, [&](auto element) {
    using T = decltype(element);
    withAccess<T>(width, {x, out}, [&](auto access) {
      constexpr int N = access();
      const dim3 grid(static_cast<unsigned>(numTokens), blocksOf<N>(width));
      launch(addGatedRows<T, N>, grid, kThreads, 0, stream, static_cast<const T*>(x),
             static_cast<const T*>(gate), int64_t{width}, static_cast<T*>(out));
    });
  });
}

void scaleQueries(void* qkv, const Batch& batch, const AttentionShape& shape,
                  const ForwardOps::Temperature& temperature, DType type, cudaStream_t stream) {
  if (batch.numTokens == 0) return;
  const int64_t width = int64_t{shape.numHeads} * shape.headDim;
  const int64_t rowWidth = shape.rowWidth();
  withType(type, [&](auto element) {
    using T = decltype(element);
    withAccess<T>(std::gcd(width, rowWidth), {qkv}, [&](auto access) {
      constexpr int N = access();
      const dim3 grid(static_cast<unsigned>(batch.numTokens), blocksOf<N>(width));
      launch(scaleQueryRows<T, N>, grid, kThreads, 0, stream, static_cast<T*>(qkv), rowWidth, width,
             static_cast<const int32_t*>(batch.positions), temperature);
    });
  });
}

}  // namespace uniproc::cuda
