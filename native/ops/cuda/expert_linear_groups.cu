// Products of few pairs of tokens and experts with weights of 4 and 8 bits: each pair reads its
// expert's matrix.
#include "ops/cuda/alignment.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/quantized.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRowsPerWarp = 2;
constexpr int kColumns = 32;  // that a lane multiplies at once, all of one group
constexpr int kEights = kColumns / 8;

// out [numTokens * topK, rows] = x times the experts' matrices, `data` [numLocal * rows, cols] with
// `groups`, cols a multiple of 32; zeros for other ranks' experts. Grid: (numTokens * topK,
// ceil(rows / 16)); a warp has two rows. Reads one matrix per pair, x once for two rows from the L1
// cache: bound by memory, or by about 4 instructions per element. A sum has the lane's groups in
// ascending order, then a tree over the lanes, whatever the other pairs.
template <class Format>
__global__ void __launch_bounds__(kThreads)
    expertLinearGroupRows(const typename Format::Type* x, int32_t outputsPerRow, Routing routing,
                          const uint8_t* data, Groups groups, int32_t rows, int32_t cols,
                          typename Format::Type* out) {
  using T = typename Format::Type;
  constexpr int kWords = kColumns / Format::kWordColumns;
  waitForPrevious();
  const int64_t output = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t first =
      (static_cast<int32_t>(blockIdx.y) * kWarps + static_cast<int32_t>(threadIdx.x) / kWarpSize) *
      kRowsPerWarp;
  if (first >= rows) return;
  const int32_t expert = routing.expertIds[output] - routing.firstLocal;
  float sums[kRowsPerWarp] = {};
  if (expert >= 0 && expert < routing.numLocal) {
    const T* input = x + output / outputsPerRow * cols;
    int64_t weightRows[kRowsPerWarp];
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      weightRows[r] = int64_t{expert} * rows + min(first + r, rows - 1);
    }
    for (int32_t col = lane * kColumns; col < cols; col += kWarpSize * kColumns) {
      Vector<uint32_t, kWords> words[kRowsPerWarp];
      RowGroups<Format, 1> of[kRowsPerWarp];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        words[r] = loadVector<kWords>(reinterpret_cast<const uint32_t*>(data) +
                                      (weightRows[r] * cols + col) / Format::kWordColumns);
        of[r].load(groups, weightRows[r] * groups.columns + (col >> groups.shift));
      }
      float partial[kRowsPerWarp] = {};
#pragma unroll
      for (int e = 0; e < kEights; ++e) {
        const Vector<T, 8> eight = loadVector<8>(input + col + 8 * e);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float even = widen(eight.elements[2 * j]);
          const float odd = widen(eight.elements[2 * j + 1]);
#pragma unroll
          for (int r = 0; r < kRowsPerWarp; ++r) {
            const uint32_t pair = Format::pair(words[r].elements + e * (8 / Format::kWordColumns),
                                               Format::selectorOf(j), of[r].zero(0));
            T elements[2];
            std::memcpy(elements, &pair, sizeof pair);
            partial[r] += widen(elements[0]) * even;
            partial[r] += widen(elements[1]) * odd;
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) sums[r] += partial[r] * of[r].scale(0);
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const float sum = warpSum(sums[r]);
    if (lane == 0 && first + r < rows) out[output * rows + first + r] = narrow<T>(sum);
  }
}

}  // namespace

bool expertLinearGroups(const void* x, int32_t rowsPerToken, const Routing& routing,
                        const LinearWeight& weight, void* out, cudaStream_t stream) {
  if (!hasGroups(weight) || weight.cols % kColumns != 0 || !isAligned(x)) return false;
  const auto rows = static_cast<int32_t>(weight.rows / routing.numLocal);
  const dim3 grid(static_cast<unsigned>(routing.numRows()),
                  static_cast<unsigned>(ceilDiv(rows, int32_t{kWarps * kRowsPerWarp})));
  withQuantizedFormat(weight, [&]<class Format, int kGroupColumns>() {
    using T = typename Format::Type;
    launch(expertLinearGroupRows<Format>, grid, kThreads, 0, stream, static_cast<const T*>(x),
           routing.topK / rowsPerToken, routing, static_cast<const uint8_t*>(weight.data),
           groupsOf(weight), rows, static_cast<int32_t>(weight.cols), static_cast<T*>(out));
  });
  return true;
}

}  // namespace uniproc::cuda
