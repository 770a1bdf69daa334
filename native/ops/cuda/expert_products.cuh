// Products of the tokens of each expert with that expert's matrix, of a half type, on Hopper: one
// launch for all experts.
//
// The weight's rows are the rows (M) of warpgroup products and the tokens their columns (N), so
// that a tile with few tokens, as decoding has, wastes no memory bandwidth and little arithmetic.
// One warp copies tiles of the weight through a ring in shared memory with the copy engine, three
// warps gather the tokens' columns beside them with cp.async, one or two warpgroups multiply.
// Blocks are persistent: they take their tiles from the numbers of tokens per expert, which are
// known only on the device. The grid does not depend on them.
//
// Every output is one sum over all columns in ascending order, by instructions that differ only in
// the number of tokens; so its bits do not depend on the other tokens or on how tiles are divided.
#pragma once

#include <cuda.h>

#include "ops/cuda/async_copy.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mbarrier.cuh"
#include "ops/cuda/wgmma_tokens.cuh"

namespace uniproc::cuda::experts {

constexpr int kMaxExperts = 512;  // of a rank
constexpr int kMaxFewPairs = 128;
constexpr int kPanelColumns = 64;  // 128 bytes, the swizzle's span
constexpr int kPanelBytes = 128;
constexpr int kGroupRows = 8;  // rows of a swizzle atom
constexpr int kGroupBytes = kGroupRows * kPanelBytes;
constexpr int kProductRows = 64;  // of a warpgroup's product
constexpr int kGatherWarps = 3;

// How a block computes tiles. A box is what one tensor copy brings: kBoxRows rows of kPanels
// panels. A tile is up to kTileBoxes boxes of out's rows by up to kMaxTokens tokens.
//
// Boxes of 8 rows divide a matrix evenly among blocks, and gate and up alternate in them. Boxes of
// 64 rows take fewer copies; gate and up are then the two halves of a warpgroup.
template <class Element, int kMaxTokensOf, int kConsumersOf, int kHalvesOf, int kPanelsOf,
          int kStagesOf, int kBlocksOf, bool kGatedOf>
struct Tiles {
  using T = Element;
  static constexpr int kMaxTokens = kMaxTokensOf;
  static constexpr int kConsumers = kConsumersOf;  // warpgroups that multiply
  static constexpr int kHalves = kHalvesOf;        // products of 64 rows of each
  static constexpr int kPanels = kPanelsOf;        // of a stage
  static constexpr int kStages = kStagesOf;
  static constexpr int kBlocks = kBlocksOf;  // that share a multiprocessor
  static constexpr bool kGated = kGatedOf;   // out = act(gate) * up

  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupSize;
  static constexpr int kBoxRows = kHalves == 1 ? kGroupRows : kProductRows;
  static constexpr int kRows = kConsumers * kHalves * kProductRows;
  static constexpr int kBoxes = kRows / kBoxRows;
  static constexpr int kTileBoxes = kGated ? kBoxes / 2 : kBoxes;
  static constexpr int kBoxBytes = kBoxRows * kPanels * kPanelBytes;
  static constexpr int kWeightBytes = kBoxes * kBoxBytes;
  static constexpr int kTokenPanelBytes = kMaxTokens * kPanelBytes;
  static constexpr int kStageBytes = kWeightBytes + kPanels * kTokenPanelBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;

  static_assert(kMaxTokens % kGroupRows == 0 && (kHalves == 1 || kHalves == 2));
};

// For few tokens: narrow boxes of more columns, divided evenly.
template <class T, int kMaxTokens, bool kGated>
using Few = Tiles<T, kMaxTokens, 1, 1, 2, 5, 2, kGated>;
// For a few dozens of tokens per expert, still bound by memory.
template <class T, int kMaxTokens, bool kGated>
using Some = Tiles<T, kMaxTokens, 1, 2, 1, kMaxTokens == 32 ? 5 : 4, 2, kGated>;
// Bound by the copies of tiles, those of tokens above all: 300 to 390 TFLOP/s.
template <class T, bool kGated>
using Many = Tiles<T, 128, 2, 2, 1, 4, 1, kGated>;

struct Product {
  const void* x;  // T [inputs, cols]
  // The pairs of each expert: those of groupPairs, or null for up to kMaxFewPairs pairs, which the
  // blocks then group themselves.
  const int32_t* offsets;    // [numExperts + 1]
  const int32_t* pairs;      // [offsets[numExperts]]
  const int32_t* expertIds;  // [numPairs], used without the above
  int32_t numPairs;
  int32_t firstExpert;    // the id of expert 0
  const void* bias;       // T [numExperts * rows], or null
  void* out;              // T [numTokens * topK, units]; pairs of other ranks are not written
  int32_t pairsPerInput;  // pair p reads row p / pairsPerInput of x
  int32_t numExperts;     // of this rank
  int32_t rows;           // of an expert's matrix
  int32_t cols;
  Activation activation;
  // Divides the boxes evenly among the blocks, which then read different weights at any time.
  // Otherwise blocks take whole tiles in turn, those that share weights first.
  bool isEven;
  // The previous kernel let this one start after all earlier ones had ended, so the groups may be
  // read before the wait.
  bool areGroupsReady;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Tile {
  int32_t expert;
  int32_t firstPair;  // in pairs
  int32_t numTokens;
  int32_t firstBox;  // of out's rows
  int32_t numBoxes;
};

// Enumerates the tiles of this block. All threads enumerate the same.
template <class Config>
class TileFinder {
 public:
  // `offsets` and `firstTiles` [numExperts + 1] in shared memory: the tiles of tokens of all
  // earlier experts.
  __device__ TileFinder(const Product& product, const int32_t* offsets, const int32_t* firstTiles)
      : offsets_(offsets),
        firstTiles_(firstTiles),
        numExperts_(product.numExperts),
        isEven_(product.isEven),
        boxes_(
            ceilDiv(Config::kGated ? product.rows / 2 : product.rows, int32_t{Config::kBoxRows})) {
    const int32_t numTiles = firstTiles[numExperts_];
    const auto blocks = static_cast<int64_t>(gridDim.x);
    const auto block = static_cast<int64_t>(blockIdx.x);
    if (isEven_) {
      perTile_ = boxes_;
      const int64_t all = int64_t{numTiles} * boxes_;
      at_ = static_cast<int32_t>(all * block / blocks);
      end_ = static_cast<int32_t>(all * (block + 1) / blocks);
    } else {
      perTile_ = ceilDiv(boxes_, int32_t{Config::kTileBoxes});
      at_ = static_cast<int32_t>(block);
      end_ = numTiles * perTile_;
    }
  }

  __device__ bool next(Tile& tile) {
    if (at_ >= end_) return false;
    int32_t low = 0;
    for (int32_t high = numExperts_; high - low > 1;) {
      const int32_t middle = (low + high) / 2;
      if (firstTiles_[middle] * perTile_ <= at_) {
        low = middle;
      } else {
        high = middle;
      }
    }
    const int32_t numTiles = firstTiles_[low + 1] - firstTiles_[low];
    const int32_t local = at_ - firstTiles_[low] * perTile_;
    int32_t tokenTile = 0;
    if (isEven_) {
      tokenTile = local / boxes_;
      tile.firstBox = local - tokenTile * boxes_;
      tile.numBoxes = min(min(Config::kTileBoxes, boxes_ - tile.firstBox), end_ - at_);
      at_ += tile.numBoxes;
    } else {
      tokenTile = local % numTiles;
      tile.firstBox = local / numTiles * Config::kTileBoxes;
      tile.numBoxes = min(Config::kTileBoxes, boxes_ - tile.firstBox);
      at_ += static_cast<int32_t>(gridDim.x);
    }
    // Tiles of an expert have about the same number of tokens.
    const int32_t count = offsets_[low + 1] - offsets_[low];
    const int32_t perTile = ceilDiv(ceilDiv(count, numTiles), int32_t{kGroupRows}) * kGroupRows;
    const int32_t first = tokenTile * perTile;
    tile.expert = low;
    tile.firstPair = offsets_[low] + first;
    tile.numTokens = min(perTile, count - first);
    return true;
  }

 private:
  const int32_t* offsets_;
  const int32_t* firstTiles_;
  int32_t numExperts_;
  bool isEven_;
  int32_t boxes_;    // of out's rows
  int32_t perTile_;  // what at_ counts, for each tile of tokens
  int32_t at_;
  int32_t end_;
};

// firstTiles [numExperts + 1] = the tiles of at most `maxTokens` tokens before each expert. Called
// by one warp.
__device__ inline void countTiles(const int32_t* offsets, int32_t numExperts, int32_t maxTokens,
                                  int32_t* firstTiles) {
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpSize;
  const int32_t perLane = ceilDiv(numExperts, int32_t{kWarpSize});
  const int32_t begin = min(lane * perLane, numExperts);
  const int32_t end = min(begin + perLane, numExperts);
  const auto tilesOf = [&](int32_t expert) {
    return ceilDiv(offsets[expert + 1] - offsets[expert], maxTokens);
  };
  int32_t sum = 0;
  for (int32_t expert = begin; expert < end; ++expert) sum += tilesOf(expert);
  int32_t before = sum;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, before, offset);
    if (lane >= offset) before += other;
  }
  if (lane == kWarpSize - 1) firstTiles[numExperts] = before;
  before -= sum;
  for (int32_t expert = begin; expert < end; ++expert) {
    firstTiles[expert] = before;
    before += tilesOf(expert);
  }
}

// The groups of a block.
struct Groups {
  int32_t offsets[kMaxExperts + 1];
  int32_t firstTiles[kMaxExperts + 1];
  // Of few pairs:
  __align__(16) int32_t ids[kMaxFewPairs];
  int32_t fewPairs[kMaxFewPairs];
};

// Fills groups.offsets and fewPairs as groupPairs does: each thread counts for a pair and for an
// expert, reading all ids. Called by the whole block.
template <int kThreads>
__device__ inline void groupFewPairs(const Product& product, Groups& groups) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t numPairs = product.numPairs;
  for (int32_t pair = thread; pair < kMaxFewPairs; pair += kThreads) {
    const int32_t id = pair < numPairs ? product.expertIds[pair] - product.firstExpert : -1;
    groups.ids[pair] = id >= 0 && id < product.numExperts ? id : kMaxExperts;
  }
  __syncthreads();
  for (int32_t at = thread; at < max(product.numExperts + 1, numPairs); at += kThreads) {
    const int32_t own = at < numPairs ? groups.ids[at] : kMaxExperts;
    int32_t offset = 0;    // of expert `at`
    int32_t position = 0;  // of pair `at`
    for (int32_t first = 0; first < numPairs; first += 4) {
      const int4 four = reinterpret_cast<const int4*>(groups.ids)[first / 4];
      const int32_t ids[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        offset += ids[i] < at ? 1 : 0;
        position += ids[i] < own || (ids[i] == own && first + i < at) ? 1 : 0;
      }
    }
    if (at <= product.numExperts) groups.offsets[at] = offset;
    if (own < kMaxExperts) groups.fewPairs[position] = at;
  }
}

// Transposes the 8 x 8 elements of 2 bytes that the warp holds, two in each thread: thread 4 i + j
// holds those of row i at columns 2 j.
__device__ inline uint32_t transposed(uint32_t elements) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(elements));
  return result;
}

template <class T>
__device__ inline uint32_t packed(float first, float second) {
  const T both[2] = {narrow<T>(first), narrow<T>(second)};
  uint32_t word;
  std::memcpy(&word, both, sizeof word);
  return word;
}

// activation(gate) * up of sums, which are rounded to T: as activateAndMulRows.
template <class T>
__device__ inline float activatedSums(Activation activation, float gateSum, float upSum) {
  return activated<T>(activation, rounded<T>(gateSum), rounded<T>(upSum));
}

// Calls run(Constant<N>{}) with the tokens of a product for a tile of numTokens.
template <int kMaxTokens, class Run>
__device__ inline void withTokens(int32_t numTokens, Run run) {
  if (kMaxTokens == 8 || numTokens <= 8) return run(std::integral_constant<int, 8>{});
  if constexpr (kMaxTokens >= 16) {
    if (kMaxTokens == 16 || numTokens <= 16) return run(std::integral_constant<int, 16>{});
  }
  if constexpr (kMaxTokens >= 32) {
    if (kMaxTokens == 32 || numTokens <= 32) return run(std::integral_constant<int, 32>{});
  }
  if constexpr (kMaxTokens >= 64) {
    if (numTokens <= 48) return run(std::integral_constant<int, 48>{});
    if (kMaxTokens == 64 || numTokens <= 64) return run(std::integral_constant<int, 64>{});
  }
  if constexpr (kMaxTokens >= 128) {
    if (numTokens <= 80) return run(std::integral_constant<int, 80>{});
    if (numTokens <= 96) return run(std::integral_constant<int, 96>{});
    if (numTokens <= 112) return run(std::integral_constant<int, 112>{});
    run(std::integral_constant<int, 128>{});
  }
}

// A consumer warpgroup.
template <class Config>
class Consumer {
 public:
  using T = typename Config::T;

  __device__ Consumer(const Product& product, const int32_t* pairs, uint32_t ring, uint64_t* full,
                      uint64_t* empty)
      : product_(product),
        pairs_(pairs),
        ring_(ring),
        full_(full),
        empty_(empty),
        units_(Config::kGated ? product.rows / 2 : product.rows),
        consumer_(static_cast<int>(threadIdx.x) / kWarpgroupSize),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize % 4),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize) {}

  __device__ void run(const Tile& tile) {
    withTokens<Config::kMaxTokens>(tile.numTokens,
                                   [&](auto tokens) { multiply<decltype(tokens)::value>(tile); });
  }

 private:
  // Bytes between groups of 8 rows of a product's rows, and between a stage's panels.
  static constexpr uint32_t kGroupStride = Config::kHalves == 1 ? Config::kBoxBytes : kGroupBytes;
  static constexpr uint32_t kPanelStride =
      Config::kHalves == 1 ? kGroupBytes : kProductRows * kPanelBytes;
  static constexpr uint32_t kProductBytes = kProductRows * kPanelBytes * Config::kPanels;

  template <int kTokens>
  __device__ void multiply(const Tile& tile) {
    constexpr int kCount = kTokens / 2;
    float sums[Config::kHalves][kCount] = {};
    const int32_t numPanels = product_.cols / kPanelColumns;
    uint32_t previous = 0;
    for (int32_t panel = 0; panel < numPanels; panel += Config::kPanels) {
      const uint32_t stage = stage_.index;
      waitForPhase(full_[stage], stage_.parity);
      const uint32_t weights = ring_ + stage * Config::kStageBytes;
      const uint32_t tokens = weights + Config::kWeightBytes;
      fenceProducts();
#pragma unroll
      for (int p = 0; p < Config::kPanels; ++p) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const uint64_t b =
              operandDescriptor(tokens + p * Config::kTokenPanelBytes + k * 32, kGroupBytes, 0);
#pragma unroll
          for (int h = 0; h < Config::kHalves; ++h) {
            const uint32_t rows =
                weights + (consumer_ * Config::kHalves + h) * kProductBytes + p * kPanelStride;
            multiplyTokens<T, kTokens>(sums[h], operandDescriptor(rows + k * 32, kGroupStride, 0),
                                       b, 1);
          }
        }
      }
      commitProducts();
      if (panel > 0) {
        waitForProducts<1>();
        release(previous);
      }
      previous = stage;
      stage_.advance();
    }
    waitForProducts<0>();
#pragma unroll
    for (int h = 0; h < Config::kHalves; ++h) keepRegisters(sums[h]);
    release(previous);
    store(tile, sums);
  }

  // This warp has read a stage.
  __device__ void release(uint32_t stage) {
    if (lane_ == 0) arrive(empty_[stage]);
  }

  // Thread 4 i + j has, of each 8 tokens, tokens 2 j and 2 j + 1 of rows i and i + 8 of its warp's
  // 16 rows.
  template <int kCount>
  __device__ void store(const Tile& tile, float (&sums)[Config::kHalves][kCount]) {
    const int i = lane_ / 4;
    const int j = lane_ % 4;
    const int32_t first = tile.firstBox * Config::kBoxRows;
    const int32_t end = min(first + tile.numBoxes * Config::kBoxRows, units_);
    const T* bias = nullptr;
    if (product_.bias) {
      bias = static_cast<const T*>(product_.bias) + int64_t{tile.expert} * product_.rows;
    }
    auto* out = static_cast<T*>(product_.out);
    const auto biasOf = [&](int32_t row) { return bias ? widen(bias[row]) : 0.0f; };
    // The two elements of each thread of units 8 u .. 8 u + 7, counted from the tile's first, and
    // of tokens 8 n .. 8 n + 7, transposed.
    const auto wordOf = [&](int n, int u, int h, int r) {
      const int32_t unit = min(first + 8 * u + i, units_ - 1);
      const float* of = sums[h] + 4 * n + 2 * r;
      const float add = biasOf(unit);
      if constexpr (!Config::kGated) return transposed(packed<T>(of[0] + add, of[1] + add));
      const float* up = Config::kHalves == 1 ? of + 2 : sums[1] + 4 * n + 2 * r;
      const float upAdd = biasOf(units_ + unit);
      return transposed(
          packed<T>(activatedSums<T>(product_.activation, of[0] + add, up[0] + upAdd),
                    activatedSums<T>(product_.activation, of[1] + add, up[1] + upAdd)));
    };
    const auto rowOf = [&](int token) {
      return out + int64_t{pairs_[tile.firstPair + token]} * units_;
    };
    if constexpr (Config::kHalves == 1) {
      constexpr int kGroups = Config::kGated ? 1 : 2;
#pragma unroll
      for (int n = 0; n < kCount / 4; ++n) {
#pragma unroll
        for (int r = 0; r < kGroups; ++r) {
          const int u = (consumer_ * 4 + warp_) * kGroups + r;
          const uint32_t word = wordOf(n, u, 0, r);
          const int token = 8 * n + i;
          const int32_t unit = first + 8 * u + 2 * j;
          if (token < tile.numTokens && unit < end) {
            *reinterpret_cast<uint32_t*>(rowOf(token) + unit) = word;
          }
        }
      }
    } else {
      // Four words at a time, of two halves or of two times eight tokens: thread j of four then
      // stores the eight units of word j.
      constexpr int kTokenGroups = Config::kGated ? 2 : 1;
#pragma unroll
      for (int n = 0; n < kCount / 4; n += kTokenGroups) {
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int h = Config::kGated ? 0 : w / 2;
          const int tokens = Config::kGated ? n + w / 2 : n;
          const int u = groupOf(h, w % 2);
          words[w] = tokens < kCount / 4 ? wordOf(tokens, u, h, w % 2) : 0;
        }
        exchange<1>(words[0], words[1], j);
        exchange<1>(words[2], words[3], j);
        exchange<2>(words[0], words[2], j);
        exchange<2>(words[1], words[3], j);
        const int token = 8 * (Config::kGated ? n + j / 2 : n) + i;
        const int32_t unit = first + 8 * groupOf(Config::kGated ? 0 : j / 2, j % 2);
        if (token < tile.numTokens && unit < end) {
          *reinterpret_cast<uint4*>(rowOf(token) + unit) = {words[0], words[1], words[2], words[3]};
        }
      }
    }
  }

  // Which 8 of out's rows, from the tile's first, rows 8 r .. 8 r + 7 of this warp's 16 are, of
  // boxes of 64 rows.
  __device__ int groupOf(int half, int r) const {
    const int box = Config::kGated ? consumer_ : consumer_ * Config::kHalves + half;
    return (box * 4 + warp_) * 2 + r;
  }

  // Swaps `high` of threads j with `low` of threads j + kDistance, for j without that bit.
  template <int kDistance>
  __device__ static void exchange(uint32_t& low, uint32_t& high, int j) {
    const bool isUpper = (j & kDistance) != 0;
    const uint32_t other = __shfl_xor_sync(kAllLanes, isUpper ? low : high, kDistance);
    (isUpper ? low : high) = other;
  }

  const Product& product_;
  const int32_t* pairs_;
  uint32_t ring_;
  uint64_t* full_;
  uint64_t* empty_;
  int32_t units_;
  int consumer_;
  int warp_;
  int lane_;
  Stage<Config::kStages> stage_;
};

// The thread that copies weights.
template <class Config>
__device__ inline void copyWeights(const CUtensorMap& map, const Product& product,
                                   TileFinder<Config> finder, uint32_t ring, uint64_t* full,
                                   uint64_t* empty) {
  const int32_t numPanels = product.cols / kPanelColumns;
  const int32_t units = Config::kGated ? product.rows / 2 : product.rows;
  Stage<Config::kStages> stage;
  for (Tile tile; finder.next(tile);) {
    const int32_t firstRow = tile.expert * product.rows + tile.firstBox * Config::kBoxRows;
    const int32_t numBoxes = (Config::kGated ? 2 : 1) * tile.numBoxes;
    const auto bytes = static_cast<uint32_t>(numBoxes * Config::kBoxBytes);
    for (int32_t panel = 0; panel < numPanels; panel += Config::kPanels) {
      waitForPhase(empty[stage.index], stage.parity ^ 1);
      uint64_t& barrier = full[stage.index];
      arriveExpecting(barrier, bytes);
      uint32_t to = ring + stage.index * Config::kStageBytes;
      for (int32_t box = 0; box < numBoxes; ++box, to += Config::kBoxBytes) {
        // With gates and what they multiply in turn.
        const int32_t row = Config::kGated ? firstRow + box / 2 * Config::kBoxRows + box % 2 * units
                                           : firstRow + box * Config::kBoxRows;
        copyBox(to, map, barrier, 0, row, panel, product.isEven);
      }
      stage.advance();
    }
  }
}

// A warp that gathers tokens: of every kGatherWarps stages that with index `warp`, so that the
// copies of several stages are in flight.
template <class Config>
__device__ inline void gatherTokens(const Product& product, const int32_t* pairs,
                                    TileFinder<Config> finder, uint32_t ring, uint64_t* full,
                                    uint64_t* empty, int warp) {
  using T = typename Config::T;
  constexpr int kPieces = kPanelBytes / kAccessBytes;  // of a token's panel
  constexpr int kPieceColumns = kAccessBytes / static_cast<int>(sizeof(T));
  constexpr int kRowsAtOnce = kWarpSize / kPieces;
  constexpr int kRowsPerLane = Config::kMaxTokens / kRowsAtOnce;
  const auto lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int piece = lane % kPieces;
  const int firstRow = lane / kPieces;
  const int32_t numPanels = product.cols / kPanelColumns;
  const int32_t rowPieces = product.cols / kPieceColumns;
  const auto* x = static_cast<const T*>(product.x);
  int turn = 0;
  Stage<Config::kStages> stage;
  for (Tile tile; finder.next(tile);) {
    int32_t pieces[kRowsPerLane];  // of x
#pragma unroll
    for (int r = 0; r < kRowsPerLane; ++r) {
      const int row = firstRow + r * kRowsAtOnce;
      const int32_t pair = row < tile.numTokens ? pairs[tile.firstPair + row] : 0;
      pieces[r] = pair / product.pairsPerInput * rowPieces + piece;
    }
    for (int32_t panel = 0; panel < numPanels; panel += Config::kPanels, stage.advance()) {
      const bool isMine = turn == warp;
      turn = turn + 1 == kGatherWarps ? 0 : turn + 1;
      if (!isMine) continue;
      waitForPhase(empty[stage.index], stage.parity ^ 1);
      const uint32_t to = ring + stage.index * Config::kStageBytes + Config::kWeightBytes;
#pragma unroll
      for (int p = 0; p < Config::kPanels; ++p) {
        // Panels that do not exist are zero, as the copies of weights are.
        const int exists = Config::kPanels == 1 || panel + p < numPanels ? 0 : -1;
        const T* from = x + (exists == 0 ? panel + p : panel) * kPanelColumns;
#pragma unroll
        for (int r = 0; r < kRowsPerLane; ++r) {
          const int row = firstRow + r * kRowsAtOnce;
          if (row >= tile.numTokens) break;
          copyAsync(to + p * Config::kTokenPanelBytes + row * kPanelBytes +
                        (piece ^ row % kGroupRows) * kAccessBytes,
                    from + int64_t{pieces[r]} * kPieceColumns, exists);
        }
      }
      commitCopies();
      waitForCopies<0>();
      fenceSharedWrites();
      __syncwarp();
      if (lane == 0) arrive(full[stage.index]);
    }
  }
}

#endif

// out = x W^T of each pair, or act(x gate^T) * (x up^T). `map`: weightMap of the stacked matrices
// with boxes of Config. Grid: Config::kBlocks blocks per multiprocessor. Reads the
// matrices of the experts that have tokens, once for each kMaxTokens of them, and the tokens once
// per tile, from L2: bound by the former up to some dozens of tokens per expert, then by the
// copies.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    expertProducts(const __grid_constant__ CUtensorMap map,
                   const __grid_constant__ Product product) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char ringBytes[];
  __shared__ uint64_t full[Config::kStages];
  __shared__ uint64_t empty[Config::kStages];
  __shared__ Groups groups;
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(ringBytes));
  if (threadIdx.x == 0) {
    for (int s = 0; s < Config::kStages; ++s) {
      initBarrier(full[s], 2);  // the copy of weights, a gathering warp
      initBarrier(empty[s], Config::kConsumers * 4);
    }
    fenceBarrierInit();
  }
  // Where the groups are not ready, the next kernel may start once they are.
  if (!product.areGroupsReady) waitForPreviousAlone();
  letNextStart();
  const int32_t* pairs = product.offsets ? product.pairs : groups.fewPairs;
  if (product.offsets) {
    for (auto e = static_cast<int32_t>(threadIdx.x); e <= product.numExperts;
         e += Config::kThreads) {
      groups.offsets[e] = product.offsets[e];
    }
  } else {
    groupFewPairs<Config::kThreads>(product, groups);
  }
  __syncthreads();
  if (warp == 0) {
    countTiles(groups.offsets, product.numExperts, Config::kMaxTokens, groups.firstTiles);
  }
  __syncthreads();

  TileFinder<Config> finder(product, groups.offsets, groups.firstTiles);
  constexpr int kFirstProducer = Config::kConsumers * 4;
  if (warp == kFirstProducer) {
    // Weights do not change, so their copies need not wait for the previous kernel.
    if (threadIdx.x % kWarpSize == 0) {
      copyWeights<Config>(map, product, finder, ring, full, empty);
    }
  } else if (warp > kFirstProducer) {
    waitForPreviousAlone();
    gatherTokens<Config>(product, pairs, finder, ring, full, empty, warp - kFirstProducer - 1);
  } else {
    waitForPreviousAlone();
    Consumer<Config> consumer(product, pairs, ring, full, empty);
    for (Tile tile; finder.next(tile);) consumer.run(tile);
  }
#endif
}

}  // namespace uniproc::cuda::experts
