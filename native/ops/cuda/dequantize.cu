// Dequantizes weights with scales for the plain matrix products.
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/quantized.cuh"
#include "ops/cuda/stored_weight.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;

// out [rows, cols] = the elements of the weight (ops/linear.h), column c at order[c] if the weight
// is ordered. Grid: (rows, cols / 256). Reads half a byte or one and writes one T per element:
// bound by memory.
template <class T, StorageType kType>
__global__ void __launch_bounds__(kThreads) dequantizeRows(StoredWeight weight, T* out) {
  waitForPrevious();
  const int64_t row = blockIdx.x;
  const auto col = static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
  if (col >= weight.cols) return;
  const int32_t to = weight.order ? weight.order[col] : col;
  out[row * weight.cols + to] = narrow<T>(storedElement<kType, T>(weight, row, col));
}

constexpr int kRowsPerBlock = 8;

// The same for weights that hasGroups, whose columns are a multiple of 32: 8 adjacent columns at
// once. Grid: (ceil(cols / 2048), ceil(rows / kRowsPerBlock)). Bound by memory, mostly by what is
// written.
template <class Format>
__global__ void __launch_bounds__(kThreads)
    dequantizeGroups(const uint8_t* data, Groups groups, int32_t rows, int32_t cols,
                     typename Format::Type* out) {
  waitForPrevious();
  constexpr int kColumns = 8;
  constexpr int kBytes = 4 * kColumns / Format::kWordColumns;
  const auto first = static_cast<int64_t>(blockIdx.y) * kRowsPerBlock;
  const auto col = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x) * kColumns;
  if (col >= cols) return;
  uint32_t words[kRowsPerBlock][kBytes / 4];
  RowGroups<Format, 1> of[kRowsPerBlock];
#pragma unroll
  for (int r = 0; r < kRowsPerBlock; ++r) {
    const int64_t row = min(first + r, int64_t{rows} - 1);
    const auto from = loadVector<kBytes / 4>(
        reinterpret_cast<const uint32_t*>(data + (row * cols + col) / kColumns * kBytes));
    std::memcpy(words[r], &from, sizeof from);
    of[r].load(groups, row * groups.columns + (col >> groups.shift));
  }
#pragma unroll
  for (int r = 0; r < kRowsPerBlock; ++r) {
    if (first + r >= rows) return;
    uint32_t pairs[4];
    Vector<typename Format::Type, kColumns> to;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      pairs[j] = Format::pair(words[r], Format::selectorOf(j), of[r].zero(0));
    }
    std::memcpy(&to, pairs, sizeof pairs);
#pragma unroll
    for (typename Format::Type& element : to.elements) {
      element = narrow<typename Format::Type>(widen(element) * of[r].scale(0));
    }
    storeVector<kColumns>(out + (first + r) * cols + col, to);
  }
}

}  // namespace

void dequantize(const LinearWeight& weight, void* out, cudaStream_t stream) {
  const auto cols = static_cast<int32_t>(weight.cols);
  if (hasGroups(weight) && cols % 32 == 0 && isAligned(out)) {
    const auto rows = static_cast<int32_t>(weight.rows);
    const dim3 grid(static_cast<unsigned>(ceilDiv(cols, 8 * kThreads)),
                    static_cast<unsigned>(ceilDiv(rows, int32_t{kRowsPerBlock})));
    withQuantizedFormat(weight, [&]<class Format, int kGroupColumns>() {
      launch(dequantizeGroups<Format>, grid, kThreads, 0, stream,
             static_cast<const uint8_t*>(weight.data), groupsOf(weight), rows, cols,
             static_cast<typename Format::Type*>(out));
    });
    return;
  }
  const dim3 grid(static_cast<unsigned>(weight.rows),
                  static_cast<unsigned>(ceilDiv(cols, int32_t{kThreads})));
  withType(weight.dtype, [&]<class T>(T) {
    withStoredType(weight.format.type, [&]<StorageType kType>() {
      launch(dequantizeRows<T, kType>, grid, kThreads, 0, stream, StoredWeight::of(weight),
             static_cast<T*>(out));
    });
  });
}

}  // namespace uniproc::cuda
