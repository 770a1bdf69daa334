// Dequantizes weights with scales for the plain matrix products.
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;

// out [rows, cols] = weight [rows, cols], each element times its block's scale, scales [ceil(rows /
// scaleRows), ceil(cols / scaleCols)]. Grid: (rows, cols / 256). Reads one byte and writes one T
// per element: bound by memory.
template <class T, class Stored>
__global__ void __launch_bounds__(kThreads)
    dequantizeRows(const Stored* weight, const float* scales, int32_t cols, int32_t scaleRows,
                   int32_t scaleCols, T* out) {
  waitForPrevious();
  const auto row = static_cast<int32_t>(blockIdx.x);
  const auto col = static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
  if (col >= cols) return;
  const int64_t scale = int64_t{row / scaleRows} * ceilDiv(cols, scaleCols) + col / scaleCols;
  const int64_t at = int64_t{row} * cols + col;
  out[at] = narrow<T>(widen(weight[at]) * scales[scale]);
}

}  // namespace

void dequantize(const LinearWeight& weight, void* out, cudaStream_t stream) {
  const auto cols = static_cast<int32_t>(weight.cols);
  const dim3 grid(static_cast<unsigned>(weight.rows),
                  static_cast<unsigned>(ceilDiv(cols, int32_t{kThreads})));
  withType(weight.dtype, [&]<class T>(T) {
    launch(dequantizeRows<T, __nv_fp8_e4m3>, grid, kThreads, 0, stream,
           static_cast<const __nv_fp8_e4m3*>(weight.data), static_cast<const float*>(weight.scales),
           cols, weight.format.scaleRows, weight.format.scaleCols, static_cast<T*>(out));
  });
}

}  // namespace uniproc::cuda
