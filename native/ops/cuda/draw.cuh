// Shared by the sampling kernels: the draw of a token, and the end of a row's sampling.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/philox.h"
#include "ops/cuda/logits_processors.cuh"
#include "ops/cuda/sampling.cuh"

namespace uniproc::cuda {

// The smallest -log(-log(u)) of philox.h's uniform u: -log(-log(2^-24)) = -2.8116, rounded down.
constexpr float kMinGumbel = -2.82f;

// A draw by the Gumbel trick: the token with the highest logit + noise wins.
struct Draw {
  uint64_t seed;
  int32_t position;
  float leastScore;  // lower bound of the best score
  float bestScore = -INFINITY;
  int32_t bestId = 0;

  // Adds four adjacent tokens, the first id a multiple of 4. Groups may be added in any order: the
  // lower id wins a tie.
  __device__ void add(const float (&logits)[kGroupSize], int32_t id) {
    const float most = fmaxf(fmaxf(logits[0], logits[1]), fmaxf(logits[2], logits[3])) + kMaxGumbel;
    if (most < leastScore || most <= bestScore) return;  // cannot win
    const PhiloxBlock block = samplingWords(seed, position, id / kGroupSize);
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      const float score = logits[e] - logf(-logf(uniform(block.words[e])));
      if (score > bestScore || (score == bestScore && id + e < bestId)) {
        bestScore = score;
        bestId = id + e;
      }
    }
  }

  // Adds one token.
  __device__ void addToken(float logit, int32_t id) {
    const float most = logit + kMaxGumbel;
    if (most < leastScore || most <= bestScore) return;  // cannot win
    const PhiloxBlock block = samplingWords(seed, position, id / kGroupSize);
    const int32_t e = id % kGroupSize;
    const uint32_t word = e == 0   ? block.words[0]
                          : e == 1 ? block.words[1]
                          : e == 2 ? block.words[2]
                                   : block.words[3];
    const float score = logit - logf(-logf(uniform(word)));
    if (score > bestScore || (score == bestScore && id < bestId)) {
      bestScore = score;
      bestId = id;
    }
  }

  __device__ Key best() const { return bestScore > -INFINITY ? keyOf(bestScore, bestId) : kNoKey; }
};

__device__ inline SampledRequest requestOf(const RequestTable& requests, int64_t slot,
                                           const SamplingParams& params) {
  return {params, requests.tokenIds + slot * requests.maxModelLen, requests.numPromptTokens[slot],
          requests.numTokens[slot]};
}

// The end of a row's sampling, by one whole warp that sees all parts' results in device memory.
struct RowEnd {
  // May differ between the lanes:
  Key best = kNoKey;
  Key bannedBest = kNoKey;
  int32_t numNans = 0;

  __device__ static RowEnd load(int64_t row, const SamplerWorkspace& workspace) {
    RowEnd end;
    const int64_t first = row * workspace.numParts;
    for (auto i = static_cast<int32_t>(threadIdx.x % kWarpSize); i < workspace.numParts;
         i += kWarpSize) {
      end.best = max(end.best, __ldcg(workspace.bests + first + i));
      end.bannedBest = max(end.bannedBest, __ldcg(workspace.bannedBests + first + i));
      end.numNans += __ldcg(workspace.partNans + first + i);
    }
    return end;
  }

  // Writes the row of `out` and appends the token to the slot's. A row without a permitted token
  // gets the best banned one, else 0. `numTokens`: the request's, without the new one.
  __device__ void finish(int64_t row, int64_t slot, int32_t numTokens, const RequestTable& requests,
                         const SampledTokens& out) const {
    const auto greater = [](Key a, Key b) { return max(a, b); };
    Key chosen = warpReduce(best, greater);
    const Key banned = warpReduce(bannedBest, greater);
    const int32_t nans = warpSum(numNans);
    if (threadIdx.x % kWarpSize != 0) return;
    if (chosen == kNoKey) chosen = banned;
    const int32_t token = chosen != kNoKey ? tokenIdOf(chosen) : 0;
    out.tokenIds[row] = token;
    out.numNans[row] = nans;
    if (numTokens < requests.maxModelLen) {
      requests.tokenIds[slot * requests.maxModelLen + numTokens] = token;
      requests.numTokens[slot] = numTokens + 1;
    }
  }
};

}  // namespace uniproc::cuda
