// Products of few tokens with weights, bound by reading each weight once for all tokens: on GPUs
// before Hopper, and for columns that are no multiple of 64.
//
// A warp takes 16 rows of the weights and a share of their columns, and multiplies them with up to
// 8 tokens on tensor cores. Columns may map to the product's k in any order that both operands
// share. So a thread loads 16 bytes of adjacent columns, of the weights and of the tokens, and
// without a shuffle has the operands of two mma.m16n8k16 (mma.cuh): of the 32 columns of a chunk,
// thread 4 i + j has columns 8 j .. 8 j + 7; the first product takes columns 0 to 3 of these as its
// k = 2 j, 2 j + 1, 2 j + 8 and 2 j + 9, the second takes columns 4 to 7.
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kTokens = 8;
constexpr int kRows = 16;
constexpr int kColumns = 32;  // per chunk
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kUnroll = 4;  // chunks of a warp in flight
constexpr int kTurn = kWarps * kUnroll;
constexpr int kBlocksPerProcessor = 2;

// For larger weights cuBLASLt's kernels get closer to the bandwidth limit. Measured on an H200:
// this kernel is faster at 33 and 50 MB, cuBLASLt at 117 MB and more.
constexpr int64_t kMaxWeightBytes = int64_t{64} << 20;

struct Chunk {
  uint4 low;   // row i
  uint4 high;  // row i + 8
};

// Loads 16 bytes that are read once and not written during a step.
__device__ inline uint4 loadOnce(const void* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// x [numTokens, cols], weight [rows, cols], bias [rows] or null, out [numTokens, rows]; cols is a
// multiple of 32, all rows start at multiples of 16 bytes. Grid: at most as many blocks as fit on
// the device. Each block takes tiles of 16 rows in turn and divides the chunks of columns among its
// warps; it loads the next chunks while it multiplies the current ones, also across tiles. The
// order of the sum over warps is independent of the other tokens. Reads the weights once: bound by
// memory.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    fewTokensKernel(const T* x, int32_t numTokens, const T* weight, int32_t rows, int32_t cols,
                    const T* bias, Out* out) {
  __shared__ float partials[2][kWarps][kRows][kTokens + 1];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int i = lane / 4;
  const int j = lane % 4;
  const int32_t numChunks = cols / kColumns;
  const int32_t numTiles = ceilDiv(rows, int32_t{kRows});
  const auto step = static_cast<int32_t>(gridDim.x);
  auto tile = static_cast<int32_t>(blockIdx.x);

  // Adjacent chunks in pairs, so that a warp reads 128 bytes of a row at once.
  const auto chunkOf = [&](int32_t turn, int u) {
    return turn + u / 2 * (2 * kWarps) + 2 * warp + u % 2;
  };
  const auto loadWeights = [&](int32_t ofTile, int32_t turn, int u) {
    const int32_t chunk = chunkOf(turn, u);
    const int32_t row = ofTile * kRows + i;
    const T* from = weight + int64_t{row} * cols + j * 8 + chunk * kColumns;
    const bool exists = chunk < numChunks;
    return Chunk{exists && row < rows ? loadOnce(from) : uint4{},
                 exists && row + 8 < rows ? loadOnce(from + int64_t{8} * cols) : uint4{}};
  };
  const T* token = i < numTokens ? x + int64_t{i} * cols + j * 8 : nullptr;
  const auto loadTokens = [&](int32_t turn, int u) {
    const int32_t chunk = chunkOf(turn, u);
    return token && chunk < numChunks ? *reinterpret_cast<const uint4*>(token + chunk * kColumns)
                                      : uint4{};
  };

  // Start loading weights while the previous kernel, which computes x, finishes.
  Chunk weights[kUnroll];
  uint4 tokens[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) weights[u] = loadWeights(tile, 0, u);
  waitForPreviousAlone();
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) tokens[u] = loadTokens(0, u);

  for (int buffer = 0; tile < numTiles; buffer ^= 1) {
    float sums[4] = {};
    for (int32_t turn = 0; turn < numChunks; turn += kTurn) {
      const bool isLast = turn + kTurn >= numChunks;
      const int32_t nextTurn = isLast ? 0 : turn + kTurn;
      const int32_t nextTile = isLast ? tile + step : tile;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const auto [a, b] = weights[u];
        multiplyAdd<T>(sums, {a.x, b.x, a.y, b.y}, tokens[u].x, tokens[u].y);
        multiplyAdd<T>(sums, {a.z, b.z, a.w, b.w}, tokens[u].z, tokens[u].w);
        weights[u] = loadWeights(nextTile, nextTurn, u);
        tokens[u] = loadTokens(nextTurn, u);
      }
    }

    float (&partial)[kRows][kTokens + 1] = partials[buffer][warp];
    partial[i][2 * j] = sums[0];
    partial[i][2 * j + 1] = sums[1];
    partial[i + 8][2 * j] = sums[2];
    partial[i + 8][2 * j + 1] = sums[3];
    __syncthreads();
    for (auto at = static_cast<int>(threadIdx.x); at < kRows * numTokens; at += kThreads) {
      const int32_t row = tile * kRows + at % kRows;
      const int ofToken = at / kRows;
      if (row >= rows) continue;
      float sum = bias ? widen(bias[row]) : 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += partials[buffer][w][at % kRows][ofToken];
      out[int64_t{ofToken} * rows + row] = narrow<Out>(sum);
    }
    tile += step;
  }
}

}  // namespace

bool linearFewTokens(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                     void* out, DType outType, int32_t numMultiprocessors, cudaStream_t stream) {
  const bool fits = numTokens >= 1 && numTokens <= kTokens && weight.dtype != DType::kFloat32 &&
                    weight.cols % kColumns == 0 &&
                    weight.rows * weight.cols * 2 <= kMaxWeightBytes &&
                    (!bias || bias.dtype == weight.dtype) && isAligned(x) && isAligned(weight.data);
  if (!fits) return false;
  const auto rows = static_cast<int32_t>(weight.rows);
  const int32_t numTiles = ceilDiv(rows, int32_t{kRows});
  const int32_t tilesOfBlock = ceilDiv(numTiles, kBlocksPerProcessor * numMultiprocessors);
  const auto blocks = static_cast<unsigned>(ceilDiv(numTiles, tilesOfBlock));
  const auto multiply = [&]<class T, class Out>(T, Out) {
    launch(fewTokensKernel<T, Out>, blocks, kThreads, 0, stream, static_cast<const T*>(x),
           numTokens, static_cast<const T*>(weight.data), rows, static_cast<int32_t>(weight.cols),
           static_cast<const T*>(bias.data), static_cast<Out*>(out));
  };
  withType(weight.dtype, [&]<class T>(T type) {
    if constexpr (!std::is_same_v<T, float>) {
      if (outType == DType::kFloat32) {
        multiply(type, float{});
      } else {
        multiply(type, type);
      }
    }
  });
  check(cudaGetLastError(), "linearFewTokens");
  return true;
}

}  // namespace uniproc::cuda
