// Sorts the (token, expert) pairs of a batch by expert, for the products of expert_products.cu.
#include <algorithm>

#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kUnroll = 16;  // loads of a lane in flight

// Writes groups.offsets [numLocal + 1] and the part of groups.pairs [numTokens * topK] that belongs
// to expert blockIdx.x: the pairs of that expert in ascending order. Grid: one block per local
// expert, which reads all expertIds twice (L2), each warp an adjacent part of them: bound by
// latency.
__global__ void __launch_bounds__(kMaxThreads)
    groupPairRows(const Routing routing, const ExpertGroups groups) {
  __shared__ int32_t before[kMaxWarps];  // pairs of earlier experts in a warp's part
  __shared__ int32_t equal[kMaxWarps];   // pairs of this expert
  waitForPrevious();
  const auto expert = static_cast<int32_t>(blockIdx.x);
  const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpSize;
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpSize;
  const auto numWarps = static_cast<int32_t>(blockDim.x) / kWarpSize;
  const int32_t numPairs = routing.numTokens * routing.topK;
  const int32_t part = ceilDiv(numPairs, numWarps * kWarpSize) * kWarpSize;
  const int32_t begin = min(warp * part, numPairs);
  const int32_t end = min(begin + part, numPairs);
  // The local expert of a pair; numLocal for those of other ranks.
  const auto expertOf = [&](int32_t pair) {
    const int32_t local = pair < end ? routing.expertIds[pair] - routing.firstLocal : -1;
    return local >= 0 && local < routing.numLocal ? local : routing.numLocal;
  };

  int32_t numBefore = 0;
  int32_t numEqual = 0;
  for (int32_t first = begin; first < end; first += kUnroll * kWarpSize) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t id = expertOf(first + u * kWarpSize + lane);
      numBefore += id < expert ? 1 : 0;
      numEqual += id == expert ? 1 : 0;
    }
  }
  numBefore = warpSum(numBefore);
  numEqual = warpSum(numEqual);
  if (lane == 0) {
    before[warp] = numBefore;
    equal[warp] = numEqual;
  }
  __syncthreads();
  // Of all warps, and of the earlier ones for `at`.
  const bool isWarp = lane < numWarps;
  const int32_t ofLane = isWarp ? equal[lane] : 0;
  const int32_t offset = warpSum(isWarp ? before[lane] : 0);
  const int32_t total = warpSum(ofLane);
  const int32_t at = warpSum(lane < warp ? ofLane : 0);
  if (threadIdx.x == 0) {
    groups.offsets[expert] = offset;
    if (expert == routing.numLocal - 1) groups.offsets[routing.numLocal] = offset + total;
  }
  int32_t* to = groups.pairs + offset + at;
  for (int32_t first = begin; first < end; first += kUnroll * kWarpSize) {
    bool isEqual[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      isEqual[u] = expertOf(first + u * kWarpSize + lane) == expert;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const unsigned lanes = __ballot_sync(kAllLanes, isEqual[u]);
      if (isEqual[u]) to[__popc(lanes & ((1u << lane) - 1))] = first + u * kWarpSize + lane;
      to += __popc(lanes);
    }
  }
}

}  // namespace

void groupPairs(const Routing& routing, const ExpertGroups& groups, cudaStream_t stream) {
  const int32_t warps = std::min(ceilDiv(routing.numRows(), kUnroll * kWarpSize), kMaxWarps);
  launch(groupPairRows, static_cast<unsigned>(routing.numLocal),
         static_cast<unsigned>(warps * kWarpSize), 0, stream, routing, groups);
}

}  // namespace uniproc::cuda
