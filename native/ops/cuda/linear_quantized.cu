// Products of more than 16 tokens with weights of 4 and 8 bits, on Hopper.
//
// A block has 128 rows of the weight and up to 128 tokens, and a part of the columns if the weight
// has too few rows for all multiprocessors: the blocks of a cluster then divide the columns, and
// add their sums through shared memory, in a fixed order. The copy engine fills a ring with weights
// as they are stored and with tokens. Each of two warpgroups converts 64 rows to operands in
// registers while the tensor cores multiply the previous ones with all tokens of the block
// (wgmma.cuh). The sum of a group's products is multiplied by the group's scale.
//
// How columns are divided depends on the weight and the tile's tokens, 32, 64 or 128, alone: with a
// tile of one size every token's sum is computed in the same order whatever the number of tokens.
#include <cooperative_groups.h>

#include <algorithm>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mbarrier.cuh"
#include "ops/cuda/quantized.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kWarpgroups = 2;
constexpr int kThreads = kWarpgroups * kWarpgroupSize;
constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kTileRows = kWarpgroups * kGroupRows;
constexpr int kStageColumns = 128;
constexpr int kStepColumns = 32;  // converted at once: two products
[[maybe_unused]] constexpr int kSteps = kStageColumns / kStepColumns;
constexpr int kPanelColumns = 64;  // of the tokens: 128 bytes, the swizzle's span
[[maybe_unused]] constexpr int kPanels = kStageColumns / kPanelColumns;
constexpr int kSumStride = kTileRows + 4;  // floats; no bank conflicts between tokens

// Bytes and stages of a block. Two blocks share a multiprocessor, but for tiles of 128 tokens.
template <class Format, int kTokens>
struct Tile {
  static constexpr int kRowBytes = kStageColumns * 4 / Format::kWordColumns;
  static constexpr int kWeightBytes = kTileRows * kRowBytes;
  static constexpr int kTokenBytes = kTokens * kStageColumns * 2;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static constexpr int kBlocks = kTokens == 128 ? 1 : 2;  // of a multiprocessor
  static constexpr int kStages = (kBlocks == 1 ? 200 : 104) * 1024 / kStageBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static_assert(kRingBytes >= kTokens * kSumStride * 4, "the sums replace the ring");
};

// `weight`: matrixMap of the bytes, with boxes of kTileRows rows of a stage's columns. `x`:
// matrixMap of T [numTokens, cols], with boxes of kTokens rows of a panel. A group has
// kGroupColumns columns, or a multiple if that is 128. Grid: (blocks of a cluster, tiles of tokens,
// tiles of rows). Reads the weight once per tile of tokens and the tokens once per tile of rows,
// the second time from L2. Bound by latencies: a stage takes at least 0.7 us in a block.
template <class Format, int kTokens, int kGroupColumns>
__global__ void __launch_bounds__(kThreads, Tile<Format, kTokens>::kBlocks)
    quantizedKernel(const __grid_constant__ CUtensorMap weight,
                    const __grid_constant__ CUtensorMap x, const QuantizedProduct product) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = typename Format::Type;
  using Sizes = Tile<Format, kTokens>;
  constexpr int kStages = Sizes::kStages;
  constexpr int kCount = kTokens / 2;
  constexpr int kGroups = kStageColumns / kGroupColumns;
  constexpr int kGroupSteps = kGroupColumns / kStepColumns;
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ uint64_t full[kStages];
  __shared__ uint64_t empty[kStages];
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const auto lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int i = lane / 4;
  const int j = lane % 4;
  const auto block = static_cast<int32_t>(blockIdx.x);  // of the cluster
  const auto numBlocks = static_cast<int32_t>(gridDim.x);
  const int32_t firstToken = static_cast<int32_t>(blockIdx.y) * kTokens;
  const int32_t firstRow = static_cast<int32_t>(blockIdx.z) * kTileRows;
  const int32_t chunks = product.cols / kStageColumns;
  const int32_t firstChunk = chunks * block / numBlocks;
  const int32_t numChunks = chunks * (block + 1) / numBlocks - firstChunk;

  letNextStart();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      initBarrier(full[s], 1);
      initBarrier(empty[s], kThreads / kWarpSize);
    }
    fenceBarrierInit();
  }
  __syncthreads();

  const auto ringAddress = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
  const auto copyWeights = [&](int32_t chunk, int stage) {
    arriveExpecting(full[stage], Sizes::kStageBytes);
    copyBox(ringAddress + stage * Sizes::kStageBytes + Sizes::kTokenBytes, weight, full[stage],
            (firstChunk + chunk) * Sizes::kRowBytes, firstRow);
  };
  const auto copyTokens = [&](int32_t chunk, int stage) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      copyBox(ringAddress + stage * Sizes::kStageBytes + p * kTokens * 128, x, full[stage],
              (firstChunk + chunk) * kStageColumns + p * kPanelColumns, firstToken);
    }
  };
  // Weights do not change, so their copies need not wait for the previous kernel.
  if (threadIdx.x == 0) {
    for (int s = 0; s < min(kStages, numChunks); ++s) copyWeights(s, s);
  }

  // This thread's rows of the weight: row and row + 8 of the tile.
  const int row = warp * 16 + i;
  using ChunkGroups = RowGroups<Format, kGroups>;
  const auto loadGroups = [&](int32_t chunk, ChunkGroups(&to)[2]) {
    const int32_t column = min(firstChunk + chunk, chunks - 1) * kStageColumns;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      to[h].load(product.groups,
                 int64_t{min(firstRow + row + 8 * h, product.rows - 1)} * product.groups.columns +
                     (column >> product.groups.shift));
    }
  };
  ChunkGroups groups[2];
  ChunkGroups nextGroups[2];
  loadGroups(0, groups);

  waitForPreviousAlone();
  if (threadIdx.x == 0) {
    for (int s = 0; s < min(kStages, numChunks); ++s) copyTokens(s, s);
  }

  const uint32_t selector = Format::selectorOf(j);
  // The operands of a step: of two products, rows `row` and row + 8 at columns 2 j and 8 + 2 j.
  const auto convert = [&](const unsigned char* rows, int step, const ChunkGroups(&of)[2],
                           uint32_t (&to)[2][4]) {
    constexpr int kStepBytes = kStepColumns * 4 / Format::kWordColumns;
    constexpr int kPieces = kStepBytes / kAccessBytes;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = row + 8 * h;
      const int swizzle = Sizes::kRowBytes == 64 ? r / 2 % 4 : r % 8;
      uint32_t words[4 * kPieces];
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const uint4 piece = *reinterpret_cast<const uint4*>(
            rows + r * Sizes::kRowBytes + ((step * kPieces + p) ^ swizzle) * kAccessBytes);
        std::memcpy(words + 4 * p, &piece, sizeof piece);
      }
      const uint32_t zero = of[h].zero(step / kGroupSteps);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        to[k / 2][k % 2 * 2 + h] = Format::pair(words + kPieces * k, selector, zero);
      }
    }
  };

  float sums[kCount] = {};
  float unscaled[kCount];
  uint32_t operands[2][2][4];
  int stage = 0;
  uint32_t parity = 0;
  waitForPhase(full[0], 0);
  convert(ring + Sizes::kTokenBytes, 0, groups, operands[0]);
  for (int32_t chunk = 0; chunk < numChunks; ++chunk) {
    loadGroups(chunk + 1, nextGroups);
    const unsigned char* rows = ring + stage * Sizes::kStageBytes + Sizes::kTokenBytes;
    const uint32_t tokens = ringAddress + stage * Sizes::kStageBytes;
    const int nextStage = stage + 1 == kStages ? 0 : stage + 1;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int at = step % 2;
      keepRegisters(operands[at][0]);
      keepRegisters(operands[at][1]);
      keepRegisters(unscaled);
      fenceProducts();
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const uint32_t address = tokens + step / 2 * (kTokens * 128) + (step % 2 * 2 + k) * 32;
        multiplyRows<T>(unscaled, operands[at][k], operandDescriptor(address, 1024, 0),
                        step % kGroupSteps != 0 || k != 0);
      }
      commitProducts();
      if (step + 1 < kSteps) {
        waitForProducts<1>();  // the previous step's, which read the other operands
        keepRegisters(operands[1 - at][0]);
        keepRegisters(operands[1 - at][1]);
        convert(rows, step + 1, groups, operands[1 - at]);
      } else if (chunk + 1 < numChunks) {
        waitForPhase(full[nextStage], nextStage == 0 ? parity ^ 1 : parity);
        waitForProducts<1>();
        keepRegisters(operands[1 - at][0]);
        keepRegisters(operands[1 - at][1]);
        convert(ring + nextStage * Sizes::kStageBytes + Sizes::kTokenBytes, 0, nextGroups,
                operands[1 - at]);
      }
      if ((step + 1) % kGroupSteps != 0) continue;
      waitForProducts<0>();
      keepRegisters(unscaled);
      const float scales[2] = {groups[0].scale(step / kGroupSteps),
                               groups[1].scale(step / kGroupSteps)};
#pragma unroll
      for (int n = 0; n < kCount; ++n) sums[n] = fmaf(scales[n / 2 % 2], unscaled[n], sums[n]);
    }
    __syncwarp();
    if (lane == 0) arrive(empty[stage]);
    // Refills the stage before this one, which the other warpgroup has left as well by now.
    if (threadIdx.x == 0 && chunk > 0 && chunk - 1 + kStages < numChunks) {
      const int refilled = stage == 0 ? kStages - 1 : stage - 1;
      waitForPhase(empty[refilled], stage == 0 ? parity ^ 1 : parity);
      copyWeights(chunk - 1 + kStages, refilled);
      copyTokens(chunk - 1 + kStages, refilled);
    }
    stage = nextStage;
    if (stage == 0) parity ^= 1;
    groups[0] = nextGroups[0];
    groups[1] = nextGroups[1];
  }

  // The sums [kTokens, kTileRows] replace the ring.
  __syncthreads();
  auto* partial = reinterpret_cast<float*>(ring);
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
    partial[(n / 4 * 8 + 2 * j + n % 2) * kSumStride + row + n / 2 % 2 * 8] = sums[n];
  }
  auto cluster = cooperative_groups::this_cluster();
  if (numBlocks > 1) {
    cluster.sync();
  } else {
    __syncthreads();
  }
  // Each block adds a part of the tokens; a warp has a token, a thread four rows.
  const int32_t numTokens = min(product.numTokens - firstToken, int32_t{kTokens});
  const int32_t endToken = min(numTokens, kTokens * (block + 1) / numBlocks);
  const int32_t unit = firstRow + 4 * lane;
  for (int32_t token = kTokens * block / numBlocks + warp; token < endToken;
       token += kThreads / kWarpSize) {
    float total[4] = {};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (product.bias && unit + n < product.rows) {
        total[n] = widen(static_cast<const T*>(product.bias)[unit + n]);
      }
    }
    for (int32_t b = 0; b < numBlocks; ++b) {
      const float* from = numBlocks > 1 ? cluster.map_shared_rank(partial, b) : partial;
      const float4 part = *reinterpret_cast<const float4*>(from + token * kSumStride + 4 * lane);
      total[0] += part.x;
      total[1] += part.y;
      total[2] += part.z;
      total[3] += part.w;
    }
    const int64_t to = int64_t{firstToken + token} * product.rows + unit;
    if (product.isFloatOut) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (unit + n < product.rows) static_cast<float*>(product.out)[to + n] = total[n];
      }
    } else if (product.rows % 4 == 0) {
      if (unit < product.rows) storeNarrowed<4>(static_cast<T*>(product.out) + to, total);
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (unit + n < product.rows) static_cast<T*>(product.out)[to + n] = narrow<T>(total[n]);
      }
    }
  }
  if (numBlocks > 1) cluster.sync();  // others have read this block's sums
#endif
}

// Blocks that divide the columns of a tile of rows, 256 or more each: as many as keep the
// multiprocessors busy without a second round of blocks. Two blocks share a multiprocessor, but for
// tiles of 128 tokens: of these, more blocks than three for four multiprocessors are slower.
template <class Sizes>
int32_t columnBlocks(const LinearWeight& weight, int numMultiprocessors) {
  const auto tiles = static_cast<int32_t>(ceilDiv(weight.rows, int64_t{kTileRows}));
  const int32_t most = Sizes::kBlocks == 2 ? 2 * numMultiprocessors : numMultiprocessors * 3 / 4;
  int32_t blocks = 1;
  while (blocks < 8 && tiles * blocks * 2 <= most && weight.cols / (blocks * 2) >= 256) {
    blocks *= 2;
  }
  return blocks;
}

template <class Format, int kTokens, int kGroupColumns>
void multiply(const void* x, int32_t numTokens, const LinearWeight& weight,
              const QuantizedProduct& product, int numMultiprocessors, cudaStream_t stream) {
  using Sizes = Tile<Format, kTokens>;
  const int32_t blocks = columnBlocks<Sizes>(weight, numMultiprocessors);
  const auto kernel = quantizedKernel<Format, kTokens, kGroupColumns>;
  const CUtensorMap weights =
      matrixMap(weight.data, 1, weight.rows, bytesOf(weight.format.type, weight.cols), kTileRows,
                Sizes::kRowBytes);
  const CUtensorMap tokens = matrixMap(x, 2, numTokens, weight.cols, kTokens, 128);
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Sizes::kRingBytes),
      "cudaFuncSetAttribute of linearQuantized");
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>(ceilDiv(numTokens, int32_t{kTokens})),
                  static_cast<unsigned>(ceilDiv(product.rows, int32_t{kTileRows})));
  launchClusters(kernel, grid, static_cast<unsigned>(blocks), kThreads, Sizes::kRingBytes, stream,
                 weights, tokens, product);
  check(cudaGetLastError(), "linearQuantized");
}

// Whether the kernel, as loaded on this thread's device, was compiled for sm_90a: otherwise its
// body is empty, and it has no static shared memory.
bool askDevice() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes,
                              quantizedKernel<UInt4Weights<__nv_bfloat16, false>, 128, 128>),
        "cudaFuncGetAttributes of linearQuantized");
  return attributes.sharedSizeBytes > 0;
}

}  // namespace

bool linearQuantized(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                     DType outType, int numMultiprocessors, cudaStream_t stream) {
  thread_local const bool hasKernel = askDevice();
  if (!hasKernel || numTokens < 1 || !hasGroups(weight) || weight.cols % kStageColumns != 0 ||
      !isAligned(x)) {
    return false;
  }
  const QuantizedProduct product = productOf(x, numTokens, weight, out, outType);
  withQuantizedFormat(weight, [&]<class Format, int kGroupColumns>() {
    if (numTokens <= 32) {
      multiply<Format, 32, kGroupColumns>(x, numTokens, weight, product, numMultiprocessors,
                                          stream);
    } else if (numTokens <= 64) {
      multiply<Format, 64, kGroupColumns>(x, numTokens, weight, product, numMultiprocessors,
                                          stream);
    } else {
      multiply<Format, 128, kGroupColumns>(x, numTokens, weight, product, numMultiprocessors,
                                           stream);
    }
  });
  return true;
}

}  // namespace uniproc::cuda
