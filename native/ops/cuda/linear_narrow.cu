// Products with weights of few rows, such as the gate of a shared expert, for any number of tokens.
// cuBLASLt's algorithms for a matrix of one row suit one number of tokens alone.
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kMaxRows = 7;
constexpr int kWarps = 8;

// x [numTokens, cols], weight [rows, cols], bias [rows] or null, out [numTokens, rows]. Grid: a
// warp per token. Reads x once from device memory and the weight from L2: bound by the former.
template <class T, class Out>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    narrowKernel(const T* x, int32_t numTokens, const T* weight, int32_t rows, int32_t cols,
                 const T* bias, Out* out) {
  waitForPrevious();
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpSize;
  const int32_t token =
      static_cast<int32_t>(blockIdx.x) * kWarps + static_cast<int32_t>(threadIdx.x) / kWarpSize;
  if (token >= numTokens) return;
  const T* values = x + int64_t{token} * cols;
  for (int32_t row = 0; row < rows; ++row) {
    const T* of = weight + int64_t{row} * cols;
    float sum = 0.0f;
    for (int32_t col = lane; col < cols; col += kWarpSize) {
      sum = fmaf(widen(values[col]), widen(of[col]), sum);
    }
    sum = warpSum(sum);
    if (lane == 0) {
      out[int64_t{token} * rows + row] = narrow<Out>(bias ? sum + widen(bias[row]) : sum);
    }
  }
}

}  // namespace

bool linearNarrow(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                  void* out, DType outType, cudaStream_t stream) {
  if (weight.rows > kMaxRows || (bias && bias.dtype != weight.dtype)) return false;
  withType(weight.dtype, [&]<class T>(T) {
    const auto run = [&]<class Out>(Out) {
      launch(narrowKernel<T, Out>, static_cast<unsigned>(ceilDiv(numTokens, kWarps)),
             kWarps * kWarpSize, 0, stream, static_cast<const T*>(x), numTokens,
             static_cast<const T*>(weight.data), static_cast<int32_t>(weight.rows),
             static_cast<int32_t>(weight.cols), static_cast<const T*>(bias.data),
             static_cast<Out*>(out));
    };
    if (outType == DType::kFloat32) {
      run(float{});
    } else {
      run(T{});
    }
  });
  check(cudaGetLastError(), "linearNarrow");
  return true;
}

}  // namespace uniproc::cuda
