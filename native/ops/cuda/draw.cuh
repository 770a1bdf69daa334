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

  // Adds four adjacent tokens, the first id a multiple of 4. A thread must add its groups in
  // ascending order of ids, since the earlier token wins a tie.
  __device__ void add(const float (&logits)[kGroupSize], int32_t id) {
    const float most = fmaxf(fmaxf(logits[0], logits[1]), fmaxf(logits[2], logits[3])) + kMaxGumbel;
    if (most < leastScore || most <= bestScore) return;  // cannot win
    const PhiloxBlock block = samplingWords(seed, position, id / kGroupSize);
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      const float score = logits[e] - logf(-logf(uniform(block.words[e])));
      if (score > bestScore) {
        bestScore = score;
        bestId = id + e;
      }
    }
  }

  __device__ Key best() const { return bestScore > -INFINITY ? keyOf(bestScore, bestId) : kNoKey; }
};

__device__ inline SampledRequest requestOf(const RequestTable& requests, int64_t slot,
                                           const SamplingParams& params) {
  return {params, requests.tokenIds + slot * requests.maxModelLen, requests.numPromptTokens[slot],
          requests.numTokens[slot]};
}

// Ends a row's sampling: the best token of `best`, which may differ between the lanes, and of
// workspace.bests becomes `out`'s row and is appended to the slot's tokens. A row without a
// permitted token gets the best banned one, else 0. Called by one whole warp that sees all parts'
// results in device memory. `numTokens`: the request's, without the new one.
__device__ inline void finishRow(Key best, int64_t row, int64_t slot, int32_t numTokens,
                                 const RequestTable& requests, const SamplerWorkspace& workspace,
                                 const SampledTokens& out) {
  const auto lane = static_cast<int32_t>(threadIdx.x % kWarpSize);
  const int64_t first = row * workspace.numParts;
  Key bannedBest = kNoKey;
  int32_t nans = 0;
  for (int32_t i = lane; i < workspace.numParts; i += kWarpSize) {
    best = max(best, __ldcg(workspace.bests + first + i));
    bannedBest = max(bannedBest, __ldcg(workspace.bannedBests + first + i));
    nans += __ldcg(workspace.partNans + first + i);
  }
  const auto greater = [](Key a, Key b) { return max(a, b); };
  best = warpReduce(best, greater);
  bannedBest = warpReduce(bannedBest, greater);
  nans = warpSum(nans);
  if (lane != 0) return;
  if (best == kNoKey) best = bannedBest;
  const int32_t token = best != kNoKey ? tokenIdOf(best) : 0;
  out.tokenIds[row] = token;
  out.numNans[row] = nans;
  if (numTokens < requests.maxModelLen) {
    requests.tokenIds[slot * requests.maxModelLen + numTokens] = token;
    requests.numTokens[slot] = numTokens + 1;
  }
}

}  // namespace uniproc::cuda
