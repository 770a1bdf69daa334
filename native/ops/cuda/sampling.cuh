// What the sampling kernels share: the order of tokens, a row of logits divided among blocks, and
// the scratch that carries a row from one kernel to the next.
#pragma once

#include <cfloat>
#include <cmath>

#include "ops/cuda/device_math.cuh"
#include "ops/ops.h"

namespace uniproc::cuda {

// The order of tokens -------------------------------------------------------------------------

// A token with its logit (or score) as one number, the larger the likelier: a higher logit, or the
// same logit (0 and -0 are) and a lower id. No two tokens of a row have the same.
using Key = unsigned long long;

constexpr Key kNoKey = 0;  // below every token's

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

// A block has a range of kPartSize token ids of one row, whatever the number of rows: so many
// blocks share a row that one row alone occupies a fair part of the device. A thread holds four
// groups of four neighbours, group j from partBegin + groupOffset(j) on.
constexpr int kPartThreads = 256;
constexpr int kGroupSize = 4;
constexpr int kGroups = 4;
constexpr int kPartSize = kPartThreads * kGroups * kGroupSize;

constexpr int32_t numPartsOf(int32_t vocabSize) { return ceilDiv(vocabSize, kPartSize); }

__device__ inline int32_t groupOffset(int j) {
  return (j * kPartThreads + static_cast<int32_t>(threadIdx.x)) * kGroupSize;
}

// NaN as -inf, +inf as the largest float.
__device__ inline float cleanLogit(float logit) { return fminf(fmaxf(logit, -INFINITY), FLT_MAX); }

// The thread's clean logits of the part from `begin` on; -inf past the row's end. Returns how many
// were NaN. kAligned: every row begins at a multiple of 16 bytes.
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

// The sum of the row's numbers of NaN, by every thread of the block that has seen all parts done.
// One barrier where there are none.
__device__ inline int32_t sumNans(const int32_t* partNans, int32_t numParts, int32_t* scratch) {
  int32_t numNans = 0;
  for (auto i = static_cast<int32_t>(threadIdx.x); i < numParts; i += kPartThreads) {
    numNans += __ldcg(partNans + i);
  }
  return __syncthreads_or(numNans) ? blockSum(numNans, scratch) : 0;
}

inline bool rowsAreAligned(const float* logits, int32_t vocabSize) {
  return isAligned(logits) && vocabSize % kGroupSize == 0;
}

// True for the last of `numBlocks` blocks to get here, which then sees all that the others wrote
// before (to be read by __ldcg). Every thread must call. `arrived` counts from 0.
__device__ inline bool isLastBlock(unsigned* arrived, unsigned numBlocks) {
  __shared__ bool isLast;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) isLast = atomicAdd(arrived, 1u) == numBlocks - 1;
  __syncthreads();
  if (isLast) __threadfence();
  return isLast;
}

// Requests ------------------------------------------------------------------------------------

__device__ inline bool isGreedy(const SamplingParams& params) {
  return !(params.temperature >= 1e-5f);
}
__device__ inline bool hasTopK(const SamplingParams& params, int32_t vocabSize) {
  return params.topK > 0 && params.topK < vocabSize;
}
__device__ inline bool hasTopP(const SamplingParams& params) { return params.topP < 1.0f; }

// Whether the row's draw is from some of its tokens only.
__device__ inline bool isTruncated(const SamplingParams& params, int32_t vocabSize) {
  return !isGreedy(params) && (params.minP > 0.0f || hasTopK(params, vocabSize) || hasTopP(params));
}

// Scratch -------------------------------------------------------------------------------------

// One row of each array for a row of logits.
struct SamplerWorkspace {
  Key* bests;                 // [rows, numParts]: the part's choice; kNoKey: all forbidden
  Key* bannedBests;           // [rows, numParts]: the likeliest of the tokens that applyBans banned
  int32_t* partNans;          // [rows, numParts]: NaN among the part's logits
  unsigned* arrivedDraws;     // [rows]
  unsigned* arrivedLogprobs;  // [rows]

  // Of truncated rows.
  float* scaled;     // [rows, scaledWidth]: the processed logits over the temperature
  float* maxima;     // [rows, numParts]: of scaled
  float* minima;     // [rows, numParts]: of those above -inf
  float* rowMaxima;  // [rows]
  Key* cuts;         // [rows]: tokens with a key below are not drawn

  // Of rows with logprobs.
  float* partMaxima;     // [rows, numParts]
  float* partSums;       // [rows, numParts]: of exp(logit - the part's maximum)
  int32_t* partGreater;  // [rows, numParts]: tokens likelier than the row's own
  Key* partTops;         // [rows, numParts, maxLogprobs], falling

  int32_t numParts;
  int32_t scaledWidth;  // vocabSize rounded up to whole groups
  int32_t maxLogprobs;
};

// min-p, top-k and top-p of the truncated rows: cuts and rowMaxima from scaled, maxima and minima.
void truncate(int32_t count, int32_t vocabSize, const int32_t* slots, const RequestTable& requests,
              const SamplerWorkspace& workspace, cudaStream_t stream);

// As gatherLogprobs; with `slots` (else null) as each slot's numLogprobs asks instead of numTop.
// numNans may be null. workspace.arrivedLogprobs must be 0.
void fillLogprobs(const float* logits, int32_t count, int32_t vocabSize, const int32_t* tokenIds,
                  const int32_t* slots, const SamplingParams* sampling, int32_t numTop,
                  int32_t* numNans, const Logprobs& out, const SamplerWorkspace& workspace,
                  cudaStream_t stream);

}  // namespace uniproc::cuda
