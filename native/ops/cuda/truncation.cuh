// Shared by the kernels that truncate a row: the tally of a set of tokens, exact in any order of
// summation, and the definitions of what min-p, top-k and top-p keep.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "ops/cuda/sampling.cuh"

namespace uniproc::cuda {

// Logits this far below the largest share the last bin of a histogram: their total is less than
// vocabSize * e^-40 of the largest's probability.
constexpr float kBinnedRange = 40.0f;

using Mass = unsigned long long;

// A set of tokens: its size, and its mass, the sum of exp(logit - the row's largest) in units of
// 2^-44. The mass of 2^19 tokens fits.
struct Tally {
  uint32_t count;
  Mass mass;

  __device__ Tally& operator+=(const Tally& other) {
    count += other.count;
    mass += other.mass;
    return *this;
  }
};

// What a set must reach: a count or a mass; only one is used.
struct Target {
  uint32_t count;
  Mass mass;

  __device__ bool isReachedBy(const Tally& tally) const {
    return tally.count >= count && tally.mass >= mass;
  }
};

__device__ inline Mass massOf(float logit, float most) {
  return __float2ull_rn(expf(__fsub_rn(logit, most)) * 0x1p44f);
}

// Adds to a mass in shared memory in two halves: 64-bit atomics on shared memory are slow.
__device__ inline void addMass(uint32_t* lows, uint32_t* highs, Mass mass) {
  const auto low = static_cast<uint32_t>(mass);
  auto high = static_cast<uint32_t>(mass >> 32);
  if (low != 0 && atomicAdd(lows, low) > ~low) ++high;  // the carry
  if (high != 0) atomicAdd(highs, high);
}

// Bins per unit of logit, so that the bins span from `most` to `smallest` or `range` below most.
__device__ inline float binsPerUnit(int numBins, float most, float smallest, float range) {
  const float span = most - fmaxf(smallest, most - range);
  return span > 0 ? fminf(static_cast<float>(numBins) / span, FLT_MAX) : 0;
}

// More probable tokens never have a higher bin. Both factors are finite, so the product is not NaN.
__device__ inline int binOfDistance(int numBins, float most, float logit, float perUnit) {
  const float distance = fminf(__fsub_rn(most, logit), FLT_MAX);
  return min(__float2int_rz(__fmul_rn(distance, perUnit)), numBins - 1);
}

// The lowest logit that min-p keeps; the lowest finite one, which excludes impossible tokens,
// without min-p. `most`: the row's largest logit.
__device__ inline float leastKept(const SamplingParams& params, float most) {
  if (!(params.minP > 0.0f)) return -FLT_MAX;
  return fmaxf(-FLT_MAX, most + logf(fminf(params.minP, 1.0f)));
}

// The mass that top-p keeps of `total`. At least one unit: the most probable token is kept for
// every p.
__device__ inline Mass massToKeep(float topP, Mass total) {
  const double share = ceil(static_cast<double>(topP) * static_cast<double>(total));
  return min(static_cast<Mass>(max(share, 1.0)), total);
}

}  // namespace uniproc::cuda
