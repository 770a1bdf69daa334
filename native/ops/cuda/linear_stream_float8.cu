// Products of up to 4 tokens of bfloat16 with float8 weights, at the rate of device memory, on
// Hopper.
//
// The plan of linear_stream.cu, with the tensor cores' own e4m3 products (wgmma): weights go from
// the ring in shared memory into the products as they are. Converting them in registers for
// products of half types takes longer than reading them.
//
// Tokens keep their accuracy. With a power of two as scale, a bfloat16 number x is the sum of two
// numbers of e4m3, which have 4 significant bits each: high = e4m3(x), low = e4m3(x - high). The
// sum is exact for numbers down to 2^-9 of the largest that share the scale, and wrong by at most
// 2^-17 of that one below. Both parts are columns of one product, so that the weights pass through
// the tensor cores once. Every block splits the tokens again, a stage ahead of the products: that
// needs no kernel between two products.
#include <algorithm>
#include <bit>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mbarrier.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kMultiplyWarps = kWarpgroupSize / kWarpSize;
constexpr int kBoxRows = 8;
constexpr int kPanelBytes = 128;  // of a row, that is columns; the swizzle's span
constexpr int kAtomBytes = kBoxRows * kPanelBytes;
[[maybe_unused]] constexpr int kSteps = kPanelBytes / 32;  // products of a panel
constexpr int kStageBytes = 16 << 10;                      // of weights
constexpr int kTokenStages = 4;
[[maybe_unused]] constexpr int kSplitLanes = 16;  // that split 128 columns of a token
constexpr int kTokens = 4;                        // at most
constexpr int kTokenPanelBytes = 2 * kTokens * kPanelBytes;
// Two blocks share the 228 KiB of a multiprocessor and 18 of its warps, and a norm of 512 threads
// must fit beside them (linear_stream.cu).
constexpr int kRingBytes = 104 << 10;
constexpr int kMaxRegisters = 72;
constexpr int kSplitWarps = 4;
constexpr int kThreads = (kMultiplyWarps + kSplitWarps + 1) * kWarpSize;

// A tile has kBoxes boxes of 8 rows, a stage kPanels panels of each. 4 boxes where blocks have few
// rows, so that these fill the ring; 8 where they have many, so that tokens are read less often.
template <int kBoxes>
struct Tiling {
  static constexpr int kPanels = kStageBytes / (kBoxes * kAtomBytes);
  static constexpr int kTokenBytes = kPanels * kTokenPanelBytes;  // of a stage
  // With 4 boxes a product reads a stage beyond its own, for rows that nothing uses: of the last
  // stage the tokens, and what follows them.
  static constexpr int kBehindBytes =
      std::max(kTokenStages * kTokenBytes, kBoxes < 8 ? kStageBytes : 0);
  static constexpr int kNumStages = std::min(6, (kRingBytes - kBehindBytes) / kStageBytes);
  static constexpr int kBytes = kNumStages * kStageBytes + kBehindBytes;
};

struct Product {
  const __nv_bfloat16* x;     // [numTokens, cols]
  const __nv_bfloat16* bias;  // [rows], or null
  void* out;                  // Out [numTokens, rows], or [numTokens, rows / 2] with SiLU
  const float* scales;        // [ceil(rows / scaleRows), scaleColumns]
  int32_t scaleRows;          // a multiple of 8 if scaleColumns > 1
  int32_t scaleColumns;
  int32_t panelShift;  // a scale is for 2^panelShift panels if scaleColumns > 1
  int32_t numTokens;
  int32_t rows;
  int32_t cols;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline uint32_t largerOf(uint32_t a, uint32_t b) {
  uint32_t most;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
}

// The exponent, as in the bits of a float32, of the largest of the elements that kSplitLanes lanes
// have.
__device__ inline uint32_t exponentOf(const uint4& eight) {
  constexpr uint32_t kMagnitudes = 0x7fff7fffu;
  uint32_t most = largerOf(largerOf(eight.x & kMagnitudes, eight.y & kMagnitudes),
                           largerOf(eight.z & kMagnitudes, eight.w & kMagnitudes));
  most = warpReduce<kSplitLanes>(most, largerOf);
  return max(most & 0x7fff, most >> 16) >> 7;
}

// Two elements of bfloat16 times `factor`, less than 256, as the parts of two bytes each.
__device__ inline void split(uint32_t two, float factor, uint32_t& high, uint32_t& low) {
  const __half2 x = __floats2half2_rn(__uint_as_float(two << 16) * factor,
                                      __uint_as_float(two & 0xffff0000u) * factor);
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  uint16_t part;
  asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(part) : "r"(bits));
  high = part;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(bits) : "h"(part));
  __half2 rounded;
  std::memcpy(&rounded, &bits, sizeof bits);
  const __half2 rest = __hsub2(x, rounded);
  std::memcpy(&bits, &rest, sizeof bits);
  asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(part) : "r"(bits));
  low = part;
}

struct Parts {
  uint2 high;
  uint2 low;
  float scale;
};

// Splits 128 columns of a token, eight of them in each of kSplitLanes lanes.
__device__ inline Parts splitColumns(const uint4& eight) {
  constexpr uint32_t kBias = 127;
  constexpr uint32_t kNotFinite = 255;
  constexpr uint32_t kTop = 7;  // the largest becomes 2^7 or more, less than 2^8
  const uint32_t found = exponentOf(eight);
  const uint32_t exponent = max(found, kTop + 1);
  const float factor = __uint_as_float((2 * kBias + kTop - exponent) << 23);
  const uint32_t twos[4] = {eight.x, eight.y, eight.z, eight.w};
  uint32_t high[4];
  uint32_t low[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) split(twos[n], factor, high[n], low[n]);
  return {{high[0] | high[1] << 16, high[2] | high[3] << 16},
          {low[0] | low[1] << 16, low[2] | low[3] << 16},
          found == kNotFinite ? NAN : __uint_as_float((exponent - kTop) << 23)};
}

#endif

// `weight`: weightMap with boxes of Tiling::kPanels panels. With kSilu the first half of the rows
// are gates and the second half what they multiply; a tile's boxes then alternate between both, so
// that a thread has a row's two sums, rounded to bfloat16 before the product as in siluAndMulRows.
//
// One warp copies weights, kSplitWarps split tokens, a warpgroup multiplies and adds each panel's
// products, in the order of the columns, to float32 sums. Grid: up to one block per multiprocessor.
// Reads the weight once from device memory and the tokens once per tile from L2: bound by the
// former.
template <class Out, int kBoxes, bool kSilu>
__global__ void __maxnreg__(kMaxRegisters)
    streamFloat8Kernel(const __grid_constant__ CUtensorMap weight, const Product product) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tiles = Tiling<kBoxes>;
  constexpr int kPanels = Tiles::kPanels;
  constexpr int kNumStages = Tiles::kNumStages;
  constexpr int kTileBoxes = kSilu ? kBoxes / 2 : kBoxes;  // of out
  extern __shared__ __align__(1024) unsigned char ring[];
  unsigned char* const tokenRing = ring + kNumStages * kStageBytes;
  __shared__ float tokenScales[kTokenStages][kPanels][kTokens];
  __shared__ uint64_t full[kNumStages];
  __shared__ uint64_t empty[kNumStages];
  __shared__ uint64_t tokensFull[kTokenStages];
  __shared__ uint64_t tokensEmpty[kTokenStages];
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const auto lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t numPanels = product.cols / kPanelBytes;
  const int32_t numChunks = ceilDiv(numPanels, int32_t{kPanels});
  const int32_t units = kSilu ? product.rows / 2 : product.rows;  // rows of out
  const int32_t numGroups = ceilDiv(units, int32_t{kBoxRows});
  const auto firstGroup = static_cast<int32_t>(int64_t{numGroups} * blockIdx.x / gridDim.x);
  const auto endGroup = static_cast<int32_t>(int64_t{numGroups} * (blockIdx.x + 1) / gridDim.x);

  letNextStart();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kNumStages; ++s) {
      initBarrier(full[s], 1);
      initBarrier(empty[s], kMultiplyWarps);
    }
    for (int s = 0; s < kTokenStages; ++s) {
      initBarrier(tokensFull[s], kSplitWarps);
      initBarrier(tokensEmpty[s], kMultiplyWarps);
    }
    fenceBarrierInit();
  }
  __syncthreads();

  Stage<kNumStages> stage;
  Stage<kTokenStages> tokenStage;

  if (warp == kMultiplyWarps + kSplitWarps) {
    if (lane != 0) return;
    // Weights do not change, so their copies need not wait for the previous kernel.
    for (int32_t group = firstGroup; group < endGroup; group += kTileBoxes) {
      const int32_t count = min(kTileBoxes, endGroup - group);
      for (int32_t chunk = 0; chunk < numChunks; ++chunk) {
        waitForPhase(empty[stage.index], stage.parity ^ 1);
        arriveExpecting(full[stage.index], static_cast<uint32_t>((kSilu ? 2 : 1) * count *
                                                                 Tiles::kPanels * kAtomBytes));
        unsigned char* to = ring + stage.index * kStageBytes;
        for (int32_t b = 0; b < count; ++b) {
          const int32_t row = (group + b) * kBoxRows;
          copyBoxOnce(to, weight, full[stage.index], 0, row, chunk * kPanels);
          to += Tiles::kPanels * kAtomBytes;
          if constexpr (kSilu) {
            copyBoxOnce(to, weight, full[stage.index], 0, units + row, chunk * kPanels);
            to += Tiles::kPanels * kAtomBytes;
          }
        }
        stage.advance();
      }
    }
    return;
  }

  waitForPreviousAlone();
  if (warp >= kMultiplyWarps) {
    // A warp splits the columns of two tokens or panels at once. Columns beyond numTokens are not
    // written: each column of a product depends on its own token alone.
    constexpr int kAtOnce = kWarpSize / kSplitLanes;
    constexpr int kPieces = kPanels * kTokens / (kSplitWarps * kAtOnce);
    const int splitter = kAtOnce * (warp - kMultiplyWarps) + lane / kSplitLanes;
    const int eighth = lane % kSplitLanes;
    // Panel and token of a thread's pieces; adjacent pieces are panels of one token.
    const auto panelOf = [&](int piece) {
      return (splitter + piece * kSplitWarps * kAtOnce) % kPanels;
    };
    const auto tokenOf = [&](int piece) {
      return (splitter + piece * kSplitWarps * kAtOnce) / kPanels;
    };
    // Chunks in registers ahead of the one that is split, since device memory is busy.
    constexpr int kAhead = 6 / kPieces;
    int32_t chunkToLoad = 0;
    struct Chunk {
      uint4 pieces[kPieces];
    };
    const auto load = [&] {
      Chunk chunk = {};
#pragma unroll
      for (int n = 0; n < kPieces; ++n) {
        const int32_t panel = chunkToLoad * kPanels + panelOf(n);
        if (tokenOf(n) >= product.numTokens || panel >= numPanels) continue;
        chunk.pieces[n] = *reinterpret_cast<const uint4*>(
            product.x + int64_t{tokenOf(n)} * product.cols + panel * kPanelBytes + 8 * eighth);
      }
      chunkToLoad = chunkToLoad + 1 == numChunks ? 0 : chunkToLoad + 1;
      return chunk;
    };
    Chunk queue[kAhead + 1];
#pragma unroll
    for (int q = 0; q < kAhead; ++q) queue[q] = load();
    for (int32_t group = firstGroup; group < endGroup; group += kTileBoxes) {
      for (int32_t chunk = 0; chunk < numChunks; ++chunk) {
        queue[kAhead] = load();
        waitForPhase(tokensEmpty[tokenStage.index], tokenStage.parity ^ 1);
#pragma unroll
        for (int n = 0; n < kPieces; ++n) {
          const int token = tokenOf(n);
          if (token >= product.numTokens) continue;  // for the whole warp
          const Parts parts = splitColumns(queue[0].pieces[n]);
          unsigned char* const panel =
              tokenRing + tokenStage.index * Tiles::kTokenBytes + panelOf(n) * kTokenPanelBytes;
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            const int row = 2 * token + part;
            *reinterpret_cast<uint2*>(panel + row * kPanelBytes +
                                      ((eighth / 2) ^ (row % kBoxRows)) * kAccessBytes +
                                      eighth % 2 * 8) = part == 0 ? parts.high : parts.low;
          }
          if (eighth == 0) tokenScales[tokenStage.index][panelOf(n)][token] = parts.scale;
        }
        fenceSharedWrites();
        __syncwarp();
        if (lane == 0) arrive(tokensFull[tokenStage.index]);
        tokenStage.advance();
#pragma unroll
        for (int q = 0; q < kAhead; ++q) queue[q] = queue[q + 1];
      }
    }
    return;
  }

  // Of a product [64, 2 kTokens] a thread has rows i and i + 8 of its warp's 16, both parts of
  // token j.
  const int i = lane / 4;
  const int j = lane % 4;
  const bool perColumn = product.scaleColumns > 1;
  for (int32_t group = firstGroup; group < endGroup; group += kTileBoxes) {
    // Row of the weight of this thread's sums [h]: row i of box 2 * warp + h.
    const int32_t unit = (group + (kSilu ? warp : 2 * warp)) * kBoxRows + i;
    const int32_t rows[2] = {unit, kSilu ? units + unit : unit + kBoxRows};
    const float* rowScales[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rowScales[h] = product.scales + int64_t{min(rows[h], product.rows - 1) / product.scaleRows} *
                                          product.scaleColumns;
    }
    float sums[2] = {};
    for (int32_t chunk = 0; chunk < numChunks; ++chunk) {
      float scales[kPanels][2];
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        const int32_t panel = min(chunk * kPanels + p, numPanels - 1);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          scales[p][h] = perColumn ? __ldg(rowScales[h] + (panel >> product.panelShift)) : 1.0f;
        }
      }
      waitForPhase(full[stage.index], stage.parity);
      waitForPhase(tokensFull[tokenStage.index], tokenStage.parity);
      const auto weights =
          static_cast<uint32_t>(__cvta_generic_to_shared(ring + stage.index * kStageBytes));
      const auto tokens = static_cast<uint32_t>(
          __cvta_generic_to_shared(tokenRing + tokenStage.index * Tiles::kTokenBytes));
      float products[kPanels][4];
      fenceProducts();
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        const auto panel = static_cast<uint32_t>(p);
        const uint64_t a =
            operandDescriptor(weights + panel * kAtomBytes, Tiles::kPanels * kAtomBytes, 0);
        const uint64_t b = operandDescriptor(tokens + panel * kTokenPanelBytes, kAtomBytes, 0);
#pragma unroll
        for (uint64_t s = 0; s < kSteps; ++s) {
          multiplyFloat8Rows(products[p], a + 2 * s, b + 2 * s, s > 0);
        }
      }
      commitProducts();
      float tokenScale[kPanels];
#pragma unroll
      for (int p = 0; p < kPanels; ++p) tokenScale[p] = tokenScales[tokenStage.index][p][j];
      waitForProducts<0>();
#pragma unroll
      for (int p = 0; p < kPanels; ++p) keepRegisters(products[p]);
      __syncwarp();
      if (lane == 0) {
        arrive(empty[stage.index]);
        arrive(tokensEmpty[tokenStage.index]);
      }
      stage.advance();
      tokenStage.advance();
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        if (chunk * kPanels + p >= numPanels) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          sums[h] += scales[p][h] * tokenScale[p] * (products[p][2 * h] + products[p][2 * h + 1]);
        }
      }
    }

    const auto finish = [&](int h) {
      const float sum = perColumn ? sums[h] : sums[h] * __ldg(rowScales[h]);
      return product.bias ? sum + widen(product.bias[rows[h]]) : sum;
    };
    // Boxes that were not copied give sums that nothing reads.
    const int32_t endUnit =
        j < product.numTokens ? min(min(group + kTileBoxes, endGroup) * kBoxRows, units) : 0;
    auto* out = static_cast<Out*>(product.out) + int64_t{j} * units;
    if constexpr (kSilu) {
      if (unit < endUnit) {
        const float gate = rounded<__nv_bfloat16>(finish(0));
        const float up = rounded<__nv_bfloat16>(finish(1));
        out[unit] = narrow<Out>(rounded<__nv_bfloat16>(__fdividef(gate, 1.0f + expf(-gate))) * up);
      }
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (rows[h] < endUnit) out[rows[h]] = narrow<Out>(finish(h));
      }
    }
    __syncwarp();
  }
#endif
}

template <class Out, int kBoxes, bool kSilu>
void streamTiles(const Product& product, const LinearWeight& weight, int numMultiprocessors,
                 cudaStream_t stream) {
  using Tiles = Tiling<kBoxes>;
  const auto kernel = streamFloat8Kernel<Out, kBoxes, kSilu>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kBytes),
        "cudaFuncSetAttribute of linearStreamFloat8");
  const CUtensorMap map = weightMap(weight.data, 1, weight.rows, weight.cols, Tiles::kPanels);
  const int32_t units = kSilu ? product.rows / 2 : product.rows;
  const int32_t blocks = std::min(ceilDiv(units, int32_t{kBoxRows}), numMultiprocessors);
  launch(kernel, static_cast<unsigned>(blocks), kThreads, Tiles::kBytes, stream, map, product);
  check(cudaGetLastError(), "linearStreamFloat8");
}

template <class Out, bool kSilu>
void streamTokens(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                  int numMultiprocessors, cudaStream_t stream) {
  const WeightFormat& format = weight.format;
  const bool perColumn = weight.scaleColumns() > 1;
  const Product product = {
      static_cast<const __nv_bfloat16*>(x),
      static_cast<const __nv_bfloat16*>(weight.bias.data),
      out,
      static_cast<const float*>(weight.scales),
      format.scaleRows,
      static_cast<int32_t>(weight.scaleColumns()),
      perColumn ? std::countr_zero(static_cast<uint32_t>(format.scaleCols / kPanelBytes)) : 0,
      numTokens,
      static_cast<int32_t>(weight.rows),
      static_cast<int32_t>(weight.cols)};
  // Eight boxes where a block has five or more.
  if (weight.rows / kBoxRows >= 5 * numMultiprocessors)
    return streamTiles<Out, 8, kSilu>(product, weight, numMultiprocessors, stream);
  streamTiles<Out, 4, kSilu>(product, weight, numMultiprocessors, stream);
}

// Whether this device runs code for sm_90a, which alone has warpgroup products.
bool hasKernels() {
  thread_local const bool result = [] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, streamFloat8Kernel<__nv_bfloat16, 4, false>),
          "cudaFuncGetAttributes of linearStreamFloat8");
    return attributes.sharedSizeBytes > 0;
  }();
  return result && kernelsWait();
}

bool streams(const void* x, int32_t numTokens, const LinearWeight& weight, bool silu) {
  const WeightFormat& format = weight.format;
  const bool scales = format.scaleCols >= weight.cols ||
                      (format.scaleCols % kPanelBytes == 0 && format.scaleRows % kBoxRows == 0 &&
                       std::has_single_bit(static_cast<uint32_t>(format.scaleCols / kPanelBytes)));
  return numTokens >= 1 && numTokens <= kTokens && weight.dtype == DType::kBFloat16 &&
         format.hasScales() && format.type == StorageType::kFloat8E4M3 && scales &&
         weight.cols % kPanelBytes == 0 && (!silu || weight.rows % (2 * kBoxRows) == 0) &&
         (!weight.bias || weight.bias.dtype == weight.dtype) && isAligned(x) &&
         isAligned(weight.data) && hasKernels();
}

}  // namespace

bool linearStreamFloat8(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                        DType outType, int numMultiprocessors, cudaStream_t stream) {
  if (!streams(x, numTokens, weight, false)) return false;
  if (outType == DType::kFloat32) {
    streamTokens<float, false>(x, numTokens, weight, out, numMultiprocessors, stream);
  } else {
    streamTokens<__nv_bfloat16, false>(x, numTokens, weight, out, numMultiprocessors, stream);
  }
  return true;
}

bool linearSiluAndMulStreamFloat8(const void* x, int32_t numTokens, const LinearWeight& weight,
                                  void* out, int numMultiprocessors, cudaStream_t stream) {
  if (!streams(x, numTokens, weight, true)) return false;
  streamTokens<__nv_bfloat16, true>(x, numTokens, weight, out, numMultiprocessors, stream);
  return true;
}

}  // namespace uniproc::cuda
