// Shared by the sampling kernels: the order of tokens, the division of a row of logits into parts,
// and the scratch that passes a row between kernels.
#pragma once

#include <cfloat>
#include <cmath>

#include "ops/cuda/device_math.cuh"
#include "ops/ops.h"

namespace uniproc::cuda {

// The order of tokens -------------------------------------------------------------------------

// A token and its logit (or score) as one number that orders them: by descending logit (0 equals
// -0), then ascending id. Keys are unique within a row.
using Key = unsigned long long;

constexpr Key kNoKey = 0;  // below every token's key

__device__ inline Key keyOf(float logit, int32_t tokenId) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 + 0 = 0
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return Key{ordered} << 32 | (0xffffffffu - static_cast<uint32_t>(tokenId));
}

__device__ inline float logitOf(Key key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ inline int32_t tokenIdOf(Key key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

// Parts of a row ------------------------------------------------------------------------------

// A block processes kPartSize token ids of one row, for any number of rows, so that even one row
// occupies a good part of the device. A thread holds four groups of four adjacent tokens; group j
// starts at partBegin + groupOffset(j).
constexpr int kPartThreads = 256;
constexpr int kGroupSize = 4;
constexpr int kGroups = 4;
constexpr int kPartSize = kPartThreads * kGroups * kGroupSize;

constexpr int32_t numPartsOf(int32_t vocabSize) { return ceilDiv(vocabSize, kPartSize); }

__device__ inline int32_t groupOffset(int j) {
  return (j * kPartThreads + static_cast<int32_t>(threadIdx.x)) * kGroupSize;
}

// NaN becomes -inf, +inf the largest float.
__device__ inline float cleanLogit(float logit) { return fminf(fmaxf(logit, -INFINITY), FLT_MAX); }

// Loads the thread's clean logits of the part at `begin`, -inf past the row's end. Returns the
// number of NaN. kAligned: every row starts at a multiple of 16 bytes.
template <bool kAligned>
__device__ inline int32_t loadPart(const float* row, int32_t vocabSize, int32_t begin,
                                   float (&logits)[kGroups][kGroupSize]) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const int32_t id = begin + groupOffset(j);
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) logits[j][e] = -INFINITY;
    if constexpr (kAligned) {
      if (id < vocabSize) loadWidened<kGroupSize>(row + id, logits[j]);
    } else {
#pragma unroll
      for (int e = 0; e < kGroupSize; ++e) {
        if (id + e < vocabSize) logits[j][e] = row[id + e];
      }
    }
  }
  int32_t numNans = 0;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      numNans += isnan(logits[j][e]);
      logits[j][e] = cleanLogit(logits[j][e]);
    }
  }
  return numNans;
}

// The row's total number of NaN, in every thread. Call on a block that has seen all parts complete.
// One barrier if there are none.
__device__ inline int32_t sumNans(const int32_t* partNans, int32_t numParts, int32_t* scratch) {
  int32_t numNans = 0;
  for (auto i = static_cast<int32_t>(threadIdx.x); i < numParts; i += kPartThreads) {
    numNans += __ldcg(partNans + i);
  }
  return __syncthreads_or(numNans) ? blockSum(numNans, scratch) : 0;
}

// Returns true in all lanes of the last of `numWarps` warps to call, which then sees what lane 0 of
// the other warps wrote before (read it with __ldcg). Every lane must call. `arrived` starts at 0,
// and is 0 again after the last.
__device__ inline bool isLastWarp(unsigned* arrived, unsigned numWarps) {
  unsigned place = 0;
  if (threadIdx.x % kWarpSize == 0) {
    __threadfence();
    place = atomicAdd(arrived, 1u);
    if (place == numWarps - 1) *arrived = 0;
  }
  const bool isLast = __shfl_sync(kAllLanes, place, 0) == numWarps - 1;
  if (isLast) __threadfence();
  return isLast;
}

inline bool rowsAreAligned(const float* logits, int32_t vocabSize) {
  return isAligned(logits) && vocabSize % kGroupSize == 0;
}

// Returns true on the last of `numBlocks` blocks to call, which then sees the other blocks' earlier
// writes (read them with __ldcg). Every thread must call. `arrived` starts at 0.
__device__ inline bool isLastBlock(unsigned* arrived, unsigned numBlocks) {
  __shared__ bool isLast;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) isLast = atomicAdd(arrived, 1u) == numBlocks - 1;
  __syncthreads();
  if (isLast) __threadfence();
  return isLast;
}

// Scratch -------------------------------------------------------------------------------------

// Outputs of sampling, [count] each.
struct SampledTokens {
  int32_t* tokenIds;
  int32_t* numNans;
};

// Scratch arrays, each with one row per row of logits.
struct SamplerWorkspace {
  Key* bests;                 // [rows, numParts]: the part's best; kNoKey: all forbidden
  Key* bannedBests;           // [rows, numParts]: the most probable token that applyBans banned
  int32_t* partNans;          // [rows, numParts]: number of NaN in the part
  unsigned* arrivedParts;     // [rows]: 0 between kernels; not part of the workspace
  unsigned* arrivedDraws;     // [rows]
  unsigned* arrivedLogprobs;  // [rows]

  // For truncated rows:
  float* scaled;     // [rows, scaledWidth]: processed logits divided by the temperature
  float* maxima;     // [rows, numParts]: of scaled
  float* minima;     // [rows, numParts]: of scaled, excluding -inf
  float* rowMaxima;  // [rows]
  Key* cuts;         // [rows]: tokens with a lower key are not drawn

  // For rows with logprobs:
  float* partMaxima;     // [rows, numParts]
  float* partSums;       // [rows, numParts]: sum of exp(logit - the part's maximum)
  int32_t* partGreater;  // [rows, numParts]: tokens more probable than the row's own
  Key* partTops;         // [rows, numParts, maxLogprobs], descending

  int32_t numParts;
  int32_t scaledWidth;  // vocabSize rounded up to whole groups
  int32_t maxLogprobs;
};

// Whether truncateAndDraw runs on this thread's device.
bool canTruncateInClusters();

// min-p, top-k and top-p, the draw and the end of truncated rows, from scaled, maxima and minima.
void truncateAndDraw(int32_t count, int32_t vocabSize, const int32_t* slots,
                     const RequestTable& requests, const SampledTokens& sampled,
                     const SamplerWorkspace& workspace, cudaStream_t stream);

// min-p, top-k and top-p of truncated rows: computes cuts and rowMaxima from scaled, maxima and
// minima.
void truncate(int32_t count, int32_t vocabSize, const int32_t* slots, const RequestTable& requests,
              const SamplerWorkspace& workspace, cudaStream_t stream);

// As gatherLogprobs; if `slots` is not null, each slot's numLogprobs replaces numTop. numNans may
// be null. workspace.arrivedLogprobs must be 0.
void fillLogprobs(const float* logits, int32_t count, int32_t vocabSize, const int32_t* tokenIds,
                  const int32_t* slots, const SamplingParams* sampling, int32_t numTop,
                  int32_t* numNans, const Logprobs& out, const SamplerWorkspace& workspace,
                  cudaStream_t stream);

}  // namespace uniproc::cuda
