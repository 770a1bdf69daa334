// Products of up to 16 tokens with weights of 4 and 8 bits, on Hopper and later. As
// linear_stream.cu: see there for the ring, the warps and the launch.
//
// A warp multiplies a fixed eighth of a chunk of columns. Its threads take words of 4 bytes from
// shared memory, so that the columns of one product lie within 32 columns of a row (16 for 8 bits),
// and no product spans two groups. The sum of a group's products is then multiplied by its scale.
#include <algorithm>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mbarrier.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/quantized.cuh"
#include "ops/cuda/tensor_map.h"

namespace uniproc::cuda {
namespace {

constexpr int kWarps = 8;  // that multiply
constexpr int kMultiplyThreads = kWarps * kWarpSize;
constexpr int kThreads = kMultiplyThreads + kWarpSize;
constexpr int kBoxRows = 8;
constexpr int kBoxes = 4;  // of a tile
[[maybe_unused]] constexpr int kTileRows = kBoxes * kBoxRows;
constexpr int kPanelBytes = 128;  // of a row; the swizzle's span
constexpr int kPanels = 4;        // of a box
constexpr int kBoxBytes = kPanels * kBoxRows * kPanelBytes;
constexpr int kStageBytes = kBoxes * kBoxBytes;
constexpr int kPieces = 4;         // a warp's 16-byte pieces of each row of a stage
constexpr int kTokensPerTile = 8;  // of mma.m16n8k16
constexpr int kMaxTokens = 16;

// Two blocks share the 228 KiB of a multiprocessor, also with the sums of 16 tokens.
template <int kTokenTiles>
constexpr int kStages = kTokenTiles == 1 ? 6 : 5;
// With 72 small kernels fit beside two blocks (linear_stream.cu); 16 tokens would not fit in those.
template <int kTokenTiles>
constexpr int kMaxRegisters = kTokenTiles == 1 ? 72 : 96;

// `weight`: weightMap of the bytes, with boxes of kPanels panels. kSilu as in linear_stream.cu. A
// group has kGroupPieces pieces, or is a multiple of a warp's kPieces. Grid: up to one block per
// multiprocessor. Reads the weight and its scales once from device memory and the tokens once per
// tile from L2. Bound by the latencies of a chunk's loads and products: with int4 it takes about
// twice the time of the bytes, with int8 1.4 times.
template <class Format, int kTokenTiles, int kGroupPieces, bool kSilu>
__global__ void __maxnreg__((kMaxRegisters<kTokenTiles>))
    quantizedStreamKernel(const __grid_constant__ CUtensorMap weight,
                          const QuantizedProduct product) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using T = typename Format::Type;
  constexpr int kWords = Format::kWords;
  constexpr int kPieceColumns = 4 * Format::kWordColumns;
  constexpr int kWarpColumns = kPieces * kPieceColumns;
  constexpr int kChunk = kWarps * kWarpColumns;
  constexpr int kGroups = kPieces / kGroupPieces;
  constexpr int kTileBoxes = kSilu ? kBoxes / 2 : kBoxes;
  constexpr int kTileUnits = kTileBoxes * kBoxRows;
  constexpr int kNumStages = kStages<kTokenTiles>;
  constexpr int kAhead = kTokenTiles == 1 ? kPieces : kPieces / 2;  // pieces of tokens
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ float partials[kWarps][kTileRows][kTokensPerTile * kTokenTiles + 1];
  __shared__ uint64_t full[kNumStages];
  __shared__ uint64_t empty[kNumStages];
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const auto lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t cols = product.cols;
  const int32_t numChunks = ceilDiv(cols, int32_t{kChunk});
  const int32_t units = kSilu ? product.rows / 2 : product.rows;  // rows of out
  const int32_t numBoxes = ceilDiv(units, int32_t{kBoxRows});
  const auto firstBox = static_cast<int32_t>(int64_t{numBoxes} * blockIdx.x / gridDim.x);
  const auto endBox = static_cast<int32_t>(int64_t{numBoxes} * (blockIdx.x + 1) / gridDim.x);

  letNextStart();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kNumStages; ++s) {
      initBarrier(full[s], 1);
      initBarrier(empty[s], kWarps);
    }
    fenceBarrierInit();
  }
  __syncthreads();

  int stage = 0;
  uint32_t parity = 0;
  const auto nextStage = [&] {
    if (++stage < kNumStages) return;
    stage = 0;
    parity ^= 1;
  };

  if (warp == kWarps) {
    if (lane != 0) return;
    // Weights do not change, so their copies need not wait for the previous kernel.
    for (int32_t box = firstBox; box < endBox; box += kTileBoxes) {
      const int32_t count = min(kTileBoxes, endBox - box);
      for (int32_t chunk = 0; chunk < numChunks; ++chunk) {
        waitForPhase(empty[stage], parity ^ 1);
        arriveExpecting(full[stage], static_cast<uint32_t>((kSilu ? 2 : 1) * count * kBoxBytes));
        unsigned char* to = ring + stage * kStageBytes;
        for (int32_t b = 0; b < count; ++b, to += kBoxBytes) {
          const int32_t row = (box + b) * kBoxRows;
          copyBoxOnce(to, weight, full[stage], 0, row, chunk * kPanels);
          if constexpr (kSilu) {
            copyBoxOnce(to + kTileBoxes * kBoxBytes, weight, full[stage], 0, units + row,
                        chunk * kPanels);
          }
        }
        nextStage();
      }
    }
    return;
  }

  const int i = lane / 4;
  const int j = lane % 4;
  // Row of the weight of this thread's row of box b of the tile at `box`.
  const auto rowOf = [&](int32_t box, int b) {
    const int32_t unit = (box + b % kTileBoxes) * kBoxRows + i;
    return kSilu && b >= kTileBoxes ? units + unit : unit;
  };

  // This thread's words of the pieces of row i of a box: word j. Eight rows read from all banks.
  int offsets[kPieces];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    const int piece = kPieces * (warp % 2) + p;
    offsets[p] = (warp / 2 * kBoxRows + i) * kPanelBytes + (piece ^ i) * kAccessBytes + 4 * j;
  }

  // Columns of tokens 8 t + i: of pieces in turn, those of the thread's word. Beyond the weight's
  // columns they are zero, whatever the ring has there.
  const int32_t firstColumn = warp * kWarpColumns;
  const T* x[kTokenTiles];
  bool isToken[kTokenTiles];
  uint32_t tokens[kTokenTiles][kAhead][kWords];
  const auto loadTokens = [&](int32_t column, int p) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      using Word = typename Access<4 * kWords>::Type;
      Word word{};
      if (isToken[t] && column < cols) {
        word = *reinterpret_cast<const Word*>(x[t] + column + p * kPieceColumns);
      }
      std::memcpy(tokens[t][p % kAhead], &word, sizeof word);
    }
  };

  waitForPreviousAlone();
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t) {
    const int token = kTokensPerTile * t + i;
    isToken[t] = token < product.numTokens;
    x[t] = static_cast<const T*>(product.x) + int64_t{token} * cols + j * Format::kWordColumns;
  }
#pragma unroll
  for (int p = 0; p < kAhead; ++p) loadTokens(firstColumn, p);
  for (int32_t box = firstBox; box < endBox; box += kTileBoxes) {
    float sums[2][kTokenTiles][4] = {};
    int32_t rowGroups[kBoxes];  // the first group of each row
#pragma unroll
    for (int b = 0; b < kBoxes; ++b) {
      rowGroups[b] = min(rowOf(box, b), product.rows - 1) * product.groups.columns;
    }
    for (int32_t column = firstColumn; column < numChunks * kChunk; column += kChunk) {
      const int32_t nextColumn =
          column + kChunk < numChunks * kChunk ? column + kChunk : firstColumn;
      // Used after the products, which hides the loads.
      RowGroups<Format, kGroups> groups[kBoxes];
      const int32_t firstGroup = min(column, cols - kWarpColumns) >> product.groups.shift;
#pragma unroll
      for (int b = 0; b < kBoxes; ++b) groups[b].load(product.groups, rowGroups[b] + firstGroup);
      waitForPhase(full[stage], parity);
      const unsigned char* rows = ring + stage * kStageBytes;
      float unscaled[2][kTokenTiles][4];
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const int group = p / kGroupPieces;
        if (p % kGroupPieces == 0) std::memset(unscaled, 0, sizeof unscaled);
        uint32_t columns[kTokenTiles][kWords];
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          std::memcpy(columns[t], tokens[t][p % kAhead], sizeof columns[t]);
          Format::reorder(columns[t]);
        }
        loadTokens(p + kAhead < kPieces ? column : nextColumn, (p + kAhead) % kPieces);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t words[2][kWords];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int b = 2 * m + h;
            Format::convert(*reinterpret_cast<const uint32_t*>(rows + b * kBoxBytes + offsets[p]),
                            groups[b].zero(group), words[h]);
          }
#pragma unroll
          for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
            for (int w = 0; w < kWords; w += 2) {
              multiplyAdd<T>(unscaled[m][t],
                             {words[0][w], words[1][w], words[0][w + 1], words[1][w + 1]},
                             columns[t][w], columns[t][w + 1]);
            }
          }
        }
        if ((p + 1) % kGroupPieces != 0) continue;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float scale = groups[2 * m + h].scale(group);
#pragma unroll
            for (int t = 0; t < kTokenTiles; ++t) {
              sums[m][t][2 * h] = fmaf(scale, unscaled[m][t][2 * h], sums[m][t][2 * h]);
              sums[m][t][2 * h + 1] = fmaf(scale, unscaled[m][t][2 * h + 1], sums[m][t][2 * h + 1]);
            }
          }
        }
      }
      __syncwarp();
      if (lane == 0) arrive(empty[stage]);
      nextStage();
    }

    syncNamed(1, kMultiplyThreads);  // all have read the previous tile's sums
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          partials[warp][16 * m + 8 * (n / 2) + i][kTokensPerTile * t + 2 * j + n % 2] =
              sums[m][t][n];
        }
      }
    }
    syncNamed(1, kMultiplyThreads);
    // Rows beyond this block's, whose boxes were not copied, give sums that nothing reads.
    const int32_t firstUnit = box * kBoxRows;
    const int32_t endUnit = min(endBox * kBoxRows, units);
    const auto sumOf = [&](int row, int token, int32_t weightRow) {
      float sum = product.bias ? widen(static_cast<const T*>(product.bias)[weightRow]) : 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += partials[w][row][token];
      return sum;
    };
    for (auto at = static_cast<int>(threadIdx.x); at < kTileUnits * product.numTokens;
         at += kMultiplyThreads) {
      const int row = at % kTileUnits;
      const int token = at / kTileUnits;
      const int32_t unit = firstUnit + row;
      if (unit >= endUnit) continue;
      const int64_t to = int64_t{token} * units + unit;
      const float sum = sumOf(row, token, unit);
      if constexpr (kSilu) {
        const float gate = rounded<T>(sum);
        const float up = rounded<T>(sumOf(kTileUnits + row, token, units + unit));
        static_cast<T*>(product.out)[to] =
            narrow<T>(rounded<T>(__fdividef(gate, 1.0f + expf(-gate))) * up);
      } else if (product.isFloatOut) {
        static_cast<float*>(product.out)[to] = sum;
      } else {
        static_cast<T*>(product.out)[to] = narrow<T>(sum);
      }
    }
  }
#endif
}

template <class Format, int kTokenTiles, int kGroupPieces, bool kSilu>
void stream(const CUtensorMap& weight, const QuantizedProduct& product, int numMultiprocessors,
            cudaStream_t stream) {
  const auto kernel = quantizedStreamKernel<Format, kTokenTiles, kGroupPieces, kSilu>;
  constexpr int kRingBytes = kStages<kTokenTiles> * kStageBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingBytes),
        "cudaFuncSetAttribute of linearQuantizedStream");
  const int32_t units = kSilu ? product.rows / 2 : product.rows;
  const int32_t blocks = std::min(ceilDiv(units, int32_t{kBoxRows}), numMultiprocessors);
  launch(kernel, static_cast<unsigned>(blocks), kThreads, kRingBytes, stream, weight, product);
  check(cudaGetLastError(), "linearQuantizedStream");
}

template <bool kSilu>
bool streamTokens(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                  DType outType, int numMultiprocessors, cudaStream_t onStream) {
  constexpr size_t kBlockBytes = kStages<1> * kStageBytes + (16 << 10);
  if (!kernelsWait() || maxSharedBytes() < kBlockBytes || numTokens < 1 || numTokens > kMaxTokens ||
      !hasGroups(weight) || !isAligned(x) || (kSilu && weight.rows % (2 * kBoxRows) != 0)) {
    return false;
  }
  const int64_t rowBytes = bytesOf(weight.format.type, weight.cols);
  if (rowBytes % kPanelBytes != 0) return false;
  const CUtensorMap map = weightMap(weight.data, 1, weight.rows, rowBytes, kPanels);
  const QuantizedProduct product = productOf(x, numTokens, weight, out, outType);
  withQuantizedFormat(weight, [&]<class Format, int kGroupColumns>() {
    constexpr int kPieceColumns = 4 * Format::kWordColumns;
    constexpr int kGroupPieces = std::min(kGroupColumns / kPieceColumns, kPieces);
    if (numTokens <= kTokensPerTile) {
      stream<Format, 1, kGroupPieces, kSilu>(map, product, numMultiprocessors, onStream);
    } else {
      stream<Format, 2, kGroupPieces, kSilu>(map, product, numMultiprocessors, onStream);
    }
  });
  return true;
}

}  // namespace

bool linearQuantizedStream(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                           DType outType, int numMultiprocessors, cudaStream_t stream) {
  return streamTokens<false>(x, numTokens, weight, out, outType, numMultiprocessors, stream);
}

bool linearSiluAndMulQuantizedStream(const void* x, int32_t numTokens, const LinearWeight& weight,
                                     void* out, int numMultiprocessors, cudaStream_t stream) {
  return streamTokens<true>(x, numTokens, weight, out, weight.dtype, numMultiprocessors, stream);
}

}  // namespace uniproc::cuda
