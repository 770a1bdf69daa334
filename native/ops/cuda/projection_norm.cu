// The norm of whole q and k projections (OLMo 2). Two kernels, because ranks add their sums between
// them. A row's sum has one order, whatever the batch.
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;

// The columns of q (projection 0) or k (1) in a row of qkv: [first, first + width) of rowWidth.
struct Columns {
  int64_t rowWidth;
  int64_t first;
  int32_t width;

  __device__ Columns(const AttentionShape& shape, unsigned projection)
      : rowWidth(int64_t{shape.numHeads + 2 * shape.numKvHeads} * shape.headDim),
        first(projection == 0 ? 0 : int64_t{shape.numHeads} * shape.headDim),
        width((projection == 0 ? shape.numHeads : shape.numKvHeads) * shape.headDim) {}
};

// sums [numTokens, 2] of qkv [numTokens, rowWidth]. Grid: (numTokens, 2). Reads q and k once; bound
// by device memory, or by the launch at few rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sumSquaresRows(const T* qkv, AttentionShape shape, float* sums) {
  __shared__ float scratch[kThreads / kWarpSize];
  waitForPrevious();
  const Columns columns(shape, blockIdx.y);
  const T* x = qkv + blockIdx.x * columns.rowWidth + columns.first;
  float sum = 0.0f;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < columns.width; i += kThreads) {
    const float value = widen(x[i]);
    sum += value * value;
  }
  sum = blockSum(sum, scratch);
  if (threadIdx.x == 0) sums[2 * blockIdx.x + blockIdx.y] = sum;
}

// q and k of qkv [numTokens, rowWidth] = x * rsqrt(sums / count + eps) * weight, rounded to T once.
// Grid: (numTokens, 2). Reads and writes q and k once; bound as above.
template <class T>
__global__ void __launch_bounds__(kThreads)
    normProjectionRows(T* qkv, AttentionShape shape, const float* sums, const T* qNorm,
                       const T* kNorm, float qCount, float kCount, float eps) {
  waitForPrevious();
  const Columns columns(shape, blockIdx.y);
  const T* weight = blockIdx.y == 0 ? qNorm : kNorm;
  const float count = blockIdx.y == 0 ? qCount : kCount;
  const float factor = rsqrtf(sums[2 * blockIdx.x + blockIdx.y] / count + eps);
  T* x = qkv + blockIdx.x * columns.rowWidth + columns.first;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < columns.width; i += kThreads) {
    x[i] = narrow<T>(widen(x[i]) * factor * widen(weight[i]));
  }
}

// The values of qkv [numTokens, rowWidth]: each head x * rsqrt(mean(x^2) + eps), rounded to T once.
// Grid: (numTokens, numKvHeads). Reads and writes v once; bound as above.
template <class T>
__global__ void __launch_bounds__(kThreads)
    normValueHeads(T* qkv, AttentionShape shape, float eps) {
  __shared__ float scratch[kThreads / kWarpSize];
  waitForPrevious();
  const int64_t numRotated = shape.numHeads + shape.numKvHeads;
  const int64_t head = blockIdx.x * (numRotated + shape.numKvHeads) + numRotated + blockIdx.y;
  T* x = qkv + head * shape.headDim;
  float sum = 0.0f;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < shape.headDim; i += kThreads) {
    const float value = widen(x[i]);
    sum += value * value;
  }
  sum = blockSum(sum, scratch);
  const float factor = rsqrtf(sum / static_cast<float>(shape.headDim) + eps);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < shape.headDim; i += kThreads) {
    x[i] = narrow<T>(widen(x[i]) * factor);
  }
}

}  // namespace

void normValues(void* qkv, int32_t numTokens, const AttentionShape& shape, float eps, DType type,
                cudaStream_t stream) {
  if (numTokens == 0) return;
  withType(type, [&](auto element) {
    using T = decltype(element);
    const dim3 grid(static_cast<unsigned>(numTokens), static_cast<unsigned>(shape.numKvHeads));
    launch(normValueHeads<T>, grid, kThreads, 0, stream, static_cast<T*>(qkv), shape, eps);
  });
}

void sumSquares(const void* qkv, int32_t numTokens, const AttentionShape& shape, float* sums,
                DType type, cudaStream_t stream) {
  if (numTokens == 0) return;
  withType(type, [&](auto element) {
    using T = decltype(element);
    launch(sumSquaresRows<T>, {static_cast<unsigned>(numTokens), 2}, kThreads, 0, stream,
           static_cast<const T*>(qkv), shape, sums);
  });
}

void normProjections(void* qkv, int32_t numTokens, const AttentionShape& shape,
                     const ForwardOps::ProjectionNorm& norm, DType type, cudaStream_t stream) {
  if (numTokens == 0) return;
  withType(type, [&](auto element) {
    using T = decltype(element);
    launch(normProjectionRows<T>, {static_cast<unsigned>(numTokens), 2}, kThreads, 0, stream,
           static_cast<T*>(qkv), shape, norm.sums, static_cast<const T*>(norm.q.data),
           static_cast<const T*>(norm.k.data), static_cast<float>(norm.qWidth),
           static_cast<float>(norm.kWidth), norm.eps);
  });
}

}  // namespace uniproc::cuda
