// Products of up to 16 tokens, with float8 weights up to 32, at the rate of device memory, on
// Hopper and later.
//
// A decode step is a chain of short kernels, and what it loses besides the time of its bytes is
// between them: a block's first loads, its last sum, the end of a kernel and the start of the next.
// So blocks of two products fit on a multiprocessor together. As soon as the product before the
// previous one has ended, this one's blocks fill their rings with weights, while the previous
// product and the small kernels between them still run (launch.cuh).
//
// A small kernel must fit beside two such blocks. Otherwise it takes the place of one: a block of
// the next product then starts on a multiprocessor that has one already, which then takes twice as
// long, and so do the products after it. Each of the four schedulers of a multiprocessor has 16,384
// registers and five of the two blocks' 18 warps, so with kMaxRegisters a thread it has room for
// four warps of 32 registers.
//
// Every block has adjacent rows of the weight and all of its columns, so that no sum crosses blocks
// and the order of each sum is independent of the other tokens. A warp copies tiles of the weight
// through a ring in shared memory with the copy engine; eight warps multiply, each a fixed eighth
// of the columns, with the tokens' columns from L2 in registers. As in linear_few.cu columns may
// map to the product's k in any order that both operands share, so threads load 16 bytes of
// adjacent columns of both.
#include <algorithm>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mbarrier.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_map.h"

namespace uniproc::cuda {
namespace {

constexpr int kWarps = 8;  // that multiply
constexpr int kMultiplyThreads = kWarps * kWarpSize;
constexpr int kThreads = kMultiplyThreads + kWarpSize;
constexpr int kGroupRows = 8;  // rows of a box
constexpr int kGroups = 4;     // boxes of a tile
[[maybe_unused]] constexpr int kTileRows = kGroups * kGroupRows;
constexpr int kPanelBytes = 128;  // of a row; the swizzle's span
constexpr int kPanels = 4;        // of a box
constexpr int kBoxBytes = kPanels * kGroupRows * kPanelBytes;
constexpr int kStageBytes = kGroups * kBoxBytes;
constexpr int kTokensPerTile = 8;  // of mma.m16n8k16
constexpr int kMaxTokens = 16;

// Two blocks leave 50 of a multiprocessor's 228 KiB for a small kernel, with the sums of 16
// tokens 34.
constexpr int kStages = 5;
// Chunks of tokens in registers beyond the current one.
template <class Format, int kTokenTiles>
constexpr int kAhead = kTokenTiles == 1  ? 3
                       : Format::kScaled ? 1
                                         : 2;
// Conversion needs more; with 72 it spills, and takes twice as long (2.8 to 5.8 ms for 4 tokens of
// the 8B).
template <class Format, int kTokenTiles>
constexpr int kMaxRegisters = Format::kScaled ? 96 : 72;

// Formats: 16 bytes of a weight's row as operands of kProducts products.
template <class T>
struct PlainWeights {
  using Type = T;
  static constexpr int kBytes = 2;  // of an element
  static constexpr bool kScaled = false;
  static constexpr int kWords = 4;

  __device__ static void convert(const uint4& from, uint32_t (&words)[kWords]) {
    std::memcpy(words, &from, sizeof words);
  }
};

// What an element that Float8Weights converted lacks.
template <class T>
constexpr float kFloat8Factor = std::is_same_v<T, __half> ? 256.0f : 1.0f;

template <class T>
struct Float8Weights {
  using Type = T;
  static constexpr int kBytes = 1;
  static constexpr bool kScaled = true;
  static constexpr int kWords = 8;

  // e4m3 to T, two elements at a time: exponent and mantissa move into T's fields. The difference
  // of the exponents' biases, also right for subnormal numbers, is a product with a power of two:
  // for half it is left to the scale, for bfloat16, whose sums would underflow, done here. The
  // elements of four bytes come as (1, 3), (0, 2). NaN, which no scaled weight has, becomes 480.
  __device__ static void convert(const uint4& from, uint32_t (&words)[kWords]) {
    const uint32_t four[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint32_t upper = w % 2 == 0 ? four[w / 2] : four[w / 2] << 8;
      if constexpr (std::is_same_v<T, __half>) {
        words[w] = (upper & 0x80008000u) | (upper >> 1 & 0x3f803f80u);
      } else {
        const uint32_t small = (upper & 0x80008000u) | (upper >> 4 & 0x07f007f0u);
        asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(words[w]) : "r"(small), "r"(0x7b807b80u));  // 2^120
      }
    }
  }
  // The same order for a token's columns.
  __device__ static void reorder(uint32_t& first, uint32_t& second) {
    const uint32_t odd = __byte_perm(first, second, 0x7632);
    second = __byte_perm(first, second, 0x5410);
    first = odd;
  }
};

struct Scales {
  const float* data;  // [ceil(rows / scaleRows), columns]
  int32_t rows;       // of the weight that share a scale
  int32_t cols;       // a multiple of 128, or all
  int32_t columns;
};

// Type T is Format::Type.
struct Product {
  const void* x;     // T [numTokens, cols]
  const void* bias;  // T [rows], or null
  void* out;         // Out [numTokens, rows], or T [numTokens, rows / 2] with SiLU
  Scales scales;
  int32_t numTokens;
  int32_t rows;
  int32_t cols;
};

// `weight`: weightMap with boxes of kPanels panels. With kSilu the first half of the rows are gates
// and the second half what they multiply; a tile then has rows of both, rounded to T before the
// product as in siluAndMulRows. Grid: up to one block per multiprocessor. Reads the weight once
// from device memory and the tokens once per tile from L2: bound by the former.
template <class Format, class Out, int kTokenTiles, bool kSilu>
__global__ void __maxnreg__((kMaxRegisters<Format, kTokenTiles>))
    streamKernel(const __grid_constant__ CUtensorMap weight, const Product product) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using T = typename Format::Type;
  constexpr int kPanelColumns = kPanelBytes / Format::kBytes;
  constexpr int kChunk = kPanels * kPanelColumns;
  constexpr int kPieceColumns = kAccessBytes / Format::kBytes;
  constexpr int kTileGroups = kSilu ? kGroups / 2 : kGroups;
  constexpr int kTileUnits = kTileGroups * kGroupRows;
  constexpr int kNumAhead = kAhead<Format, kTokenTiles>;
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ float partials[kWarps][kTokensPerTile * kTokenTiles][kTileRows];
  auto* full = reinterpret_cast<uint64_t*>(ring + kStages * kStageBytes);
  uint64_t* empty = full + kStages;
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const auto lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t cols = product.cols;
  const int32_t numChunks = ceilDiv(cols, int32_t{kChunk});
  const int32_t units = kSilu ? product.rows / 2 : product.rows;  // rows of out
  const int32_t numGroups = ceilDiv(units, int32_t{kGroupRows});
  const auto firstGroup = static_cast<int32_t>(int64_t{numGroups} * blockIdx.x / gridDim.x);
  const auto endGroup = static_cast<int32_t>(int64_t{numGroups} * (blockIdx.x + 1) / gridDim.x);

  letNextStart();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      initBarrier(full[s], 1);
      initBarrier(empty[s], kWarps);
    }
    fenceBarrierInit();
  }
  __syncthreads();

  int stage = 0;
  uint32_t parity = 0;
  const auto nextStage = [&] {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  };

  if (warp == kWarps) {
    if (lane != 0) return;
    // Weights do not change, so their copies need not wait for the previous kernel.
    for (int32_t group = firstGroup; group < endGroup; group += kTileGroups) {
      const int32_t count = min(kTileGroups, endGroup - group);
      for (int32_t chunk = 0; chunk < numChunks; ++chunk) {
        waitForPhase(empty[stage], parity ^ 1);
        arriveExpecting(full[stage], static_cast<uint32_t>((kSilu ? 2 : 1) * count * kBoxBytes));
        unsigned char* to = ring + stage * kStageBytes;
        for (int32_t g = 0; g < count; ++g, to += kBoxBytes) {
          const int32_t row = (group + g) * kGroupRows;
          copyBoxOnce(to, weight, full[stage], 0, row, chunk * kPanels);
          if constexpr (kSilu) {
            copyBoxOnce(to + kTileGroups * kBoxBytes, weight, full[stage], 0, units + row,
                        chunk * kPanels);
          }
        }
        nextStage();
      }
    }
    return;
  }

  waitForPreviousAlone();
  const int i = lane / 4;
  const int j = lane % 4;
  // This thread's 16 bytes of each row of a stage. Warps 2 p and 2 p + 1 share panel p; the pieces
  // are such that eight threads, of two rows, read from all banks.
  const int panel = warp / 2;
  const int piece = 2 * j + warp % 2;
  const int column = panel * kPanelColumns + piece * kPieceColumns;
  const int offset = (panel * kGroupRows + i) * kPanelBytes + (piece ^ i) * kAccessBytes;

  // Columns of tokens 8 t + i of a chunk.
  struct TokenColumns {
    uint32_t words[kTokenTiles][Format::kWords];
  };
  int32_t chunkToLoad = 0;
  const auto loadTokens = [&] {
    TokenColumns loaded = {};
    const int32_t from = chunkToLoad * kChunk + column;
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      const int token = kTokensPerTile * t + i;
      if (from >= cols || token >= product.numTokens) continue;
      const auto* x = static_cast<const T*>(product.x) + int64_t{token} * cols + from;
#pragma unroll
      for (int w = 0; w < Format::kWords; w += 4) {
        const uint4 four = reinterpret_cast<const uint4*>(x)[w / 4];
        std::memcpy(loaded.words[t] + w, &four, sizeof four);
        if constexpr (Format::kScaled) {
          Format::reorder(loaded.words[t][w], loaded.words[t][w + 1]);
          Format::reorder(loaded.words[t][w + 2], loaded.words[t][w + 3]);
        }
      }
    }
    chunkToLoad = chunkToLoad + 1 == numChunks ? 0 : chunkToLoad + 1;
    return loaded;
  };
  // Lanes that store, or read, at once do so in different banks.
  const auto partialOf = [&](int ofWarp, int row, int token) -> float& {
    return partials[ofWarp][token][row ^ token / 2 % 4 * 8];
  };
  // Row of the weight of row `row` of box `box` of the tile at `group`.
  const auto rowOf = [&](int32_t group, int box, int row) {
    const int32_t unit = (group + box % kTileGroups) * kGroupRows + row;
    return kSilu && box >= kTileGroups ? units + unit : unit;
  };

  TokenColumns queue[kNumAhead + 1];
#pragma unroll
  for (int q = 0; q < kNumAhead; ++q) queue[q] = loadTokens();
  for (int32_t group = firstGroup; group < endGroup; group += kTileGroups) {
    float sums[2][kTokenTiles][4] = {};
    for (int32_t chunk = 0; chunk < numChunks; ++chunk) {
      queue[kNumAhead] = loadTokens();
      float scales[kGroups];
      if constexpr (Format::kScaled) {
        const Scales& of = product.scales;
        const int32_t scaleColumn = min((chunk * kChunk + column) / of.cols, of.columns - 1);
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          const int32_t row = min(rowOf(group, g, i), product.rows - 1);
          scales[g] =
              kFloat8Factor<T> * __ldg(of.data + int64_t{row / of.rows} * of.columns + scaleColumn);
        }
      }
      waitForPhase(full[stage], parity);
      const unsigned char* rows = ring + stage * kStageBytes + offset;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint32_t a[Format::kWords];
        uint32_t b[Format::kWords];
        Format::convert(*reinterpret_cast<const uint4*>(rows + 2 * m * kBoxBytes), a);
        Format::convert(*reinterpret_cast<const uint4*>(rows + (2 * m + 1) * kBoxBytes), b);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          float unscaled[4] = {};
          float (&to)[4] = Format::kScaled ? unscaled : sums[m][t];
#pragma unroll
          for (int w = 0; w < Format::kWords; w += 2) {
            multiplyAdd<T>(to, {a[w], b[w], a[w + 1], b[w + 1]}, queue[0].words[t][w],
                           queue[0].words[t][w + 1]);
          }
          if constexpr (Format::kScaled) {
#pragma unroll
            for (int n = 0; n < 4; ++n) sums[m][t][n] += scales[2 * m + n / 2] * unscaled[n];
          }
        }
      }
      __syncwarp();
      if (lane == 0) arrive(empty[stage]);
      nextStage();
#pragma unroll
      for (int q = 0; q < kNumAhead; ++q) queue[q] = queue[q + 1];
    }

    syncNamed(1, kMultiplyThreads);  // all have read the previous tile's sums
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          partialOf(warp, 16 * m + 8 * (n / 2) + i, kTokensPerTile * t + 2 * j + n % 2) =
              sums[m][t][n];
        }
      }
    }
    syncNamed(1, kMultiplyThreads);
    // Rows beyond this block's, whose boxes were not copied, give sums that nothing reads.
    const int32_t firstUnit = group * kGroupRows;
    const int32_t endUnit = min(endGroup * kGroupRows, units);
    const auto sumOf = [&](int row, int token, int32_t weightRow) {
      float sum = product.bias ? widen(static_cast<const T*>(product.bias)[weightRow]) : 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += partialOf(w, row, token);
      return sum;
    };
    for (auto at = static_cast<int>(threadIdx.x); at < kTileUnits * product.numTokens;
         at += kMultiplyThreads) {
      const int row = at % kTileUnits;
      const int token = at / kTileUnits;
      const int32_t unit = firstUnit + row;
      if (unit >= endUnit) continue;
      auto* out = static_cast<Out*>(product.out) + int64_t{token} * units + unit;
      const float sum = sumOf(row, token, unit);
      if constexpr (kSilu) {
        const float gate = rounded<T>(sum);
        const float up = rounded<T>(sumOf(kTileUnits + row, token, units + unit));
        *out = narrow<Out>(rounded<T>(silu(gate)) * up);
      } else {
        *out = narrow<Out>(sum);
      }
    }
  }
#endif
}

template <class Format, class Out, int kTokenTiles, bool kSilu>
void stream(const CUtensorMap& weight, const Product& product, int numMultiprocessors,
            cudaStream_t stream) {
  const auto kernel = streamKernel<Format, Out, kTokenTiles, kSilu>;
  constexpr int kRingBytes = kStages * (kStageBytes + 2 * static_cast<int>(sizeof(uint64_t)));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingBytes),
        "cudaFuncSetAttribute of linearStream");
  const int32_t units = kSilu ? product.rows / 2 : product.rows;
  const int32_t blocks = std::min(ceilDiv(units, int32_t{kGroupRows}), numMultiprocessors);
  launch(kernel, static_cast<unsigned>(blocks), kThreads, kRingBytes, stream, weight, product);
  check(cudaGetLastError(), "linearStream");
}

template <class Format, class Out, bool kSilu>
void streamTokens(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                  int numMultiprocessors, cudaStream_t onStream) {
  const CUtensorMap map = weightMap(weight.data, Format::kBytes, weight.rows, weight.cols, kPanels);
  const auto rows = static_cast<int32_t>(weight.rows);
  const auto cols = static_cast<int32_t>(weight.cols);
  const int64_t width = kSilu ? rows / 2 : rows;
  for (int32_t first = 0; first < numTokens; first += kMaxTokens) {
    const int32_t count = std::min(numTokens - first, int32_t{kMaxTokens});
    Product product{};
    product.x = static_cast<const typename Format::Type*>(x) + int64_t{first} * cols;
    product.bias = weight.bias.data;
    product.out = static_cast<Out*>(out) + first * width;
    if constexpr (Format::kScaled) {
      product.scales = {static_cast<const float*>(weight.scales), weight.format.scaleRows,
                        weight.format.scaleCols, static_cast<int32_t>(weight.scaleColumns())};
    }
    product.numTokens = count;
    product.rows = rows;
    product.cols = cols;
    if (count <= kTokensPerTile) {
      stream<Format, Out, 1, kSilu>(map, product, numMultiprocessors, onStream);
    } else {
      stream<Format, Out, 2, kSilu>(map, product, numMultiprocessors, onStream);
    }
  }
}

// Whether streamKernel computes a product of these arguments, and faster than other ways do: from
// 17 tokens on cuBLASLt is. It cannot read float8, which would be converted first and moves five
// bytes per element then; reading a weight once for every 16 tokens moves less up to 32 tokens.
bool streams(const void* x, int32_t numTokens, const LinearWeight& weight, bool silu) {
  const WeightFormat& format = weight.format;
  const bool scaled = format.hasScales();
  const int64_t panelColumns = scaled ? kPanelBytes : kPanelBytes / 2;
  constexpr size_t kBlockBytes = kStages * kStageBytes + (16 << 10);
  return kernelsWait() && maxSharedBytes() >= kBlockBytes && numTokens >= 1 &&
         numTokens <= (scaled ? 2 : 1) * kMaxTokens && weight.dtype != DType::kFloat32 &&
         (scaled ? format.type == StorageType::kFloat8E4M3 &&
                       (format.scaleCols % kPanelBytes == 0 || format.scaleCols >= weight.cols)
                 : format.type == storageOf(weight.dtype)) &&
         weight.cols % panelColumns == 0 && (!silu || weight.rows % (2 * kGroupRows) == 0) &&
         (!weight.bias || weight.bias.dtype == weight.dtype) && isAligned(x) &&
         isAligned(weight.data);
}

// Calls run(Format{}) with the format of a weight of a half type.
template <class Run>
void withFormat(const LinearWeight& weight, Run run) {
  withType(weight.dtype, [&]<class T>(T) {
    if constexpr (!std::is_same_v<T, float>) {
      if (weight.format.hasScales()) {
        run(Float8Weights<T>{});
      } else {
        run(PlainWeights<T>{});
      }
    }
  });
}

}  // namespace

bool linearStream(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                  DType outType, int numMultiprocessors, cudaStream_t stream) {
  if (!streams(x, numTokens, weight, false)) return false;
  withFormat(weight, [&]<class Format>(Format) {
    if (outType == DType::kFloat32) {
      streamTokens<Format, float, false>(x, numTokens, weight, out, numMultiprocessors, stream);
    } else {
      streamTokens<Format, typename Format::Type, false>(x, numTokens, weight, out,
                                                         numMultiprocessors, stream);
    }
  });
  return true;
}

bool linearSiluAndMulStream(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                            int numMultiprocessors, cudaStream_t stream) {
  if (!streams(x, numTokens, weight, true)) return false;
  withFormat(weight, [&]<class Format>(Format) {
    streamTokens<Format, typename Format::Type, true>(x, numTokens, weight, out, numMultiprocessors,
                                                      stream);
  });
  return true;
}

}  // namespace uniproc::cuda
