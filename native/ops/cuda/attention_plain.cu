// Attention for the cases that the tensor-core kernels do not support: float32 (for checks) and
// head sizes used by tests only. T: type of activations; C: of the cache.
#include <string>

#include "base/error.h"
#include "ops/cuda/attention.cuh"
#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kWarps = 4;

// One query head of one token. Keys are distributed over warps and a key's elements over lanes:
// lane's i-th element is lane + 32 i. Sums are merged in warp order.
//
// Grid (maxQueryLen, numHeads, numRows), kWarps * 32 threads, shared memory of kWarps * headDim
// floats. Every query reads its keys and values again, 2 * headDim elements per key: bound by
// instructions and the L2 cache.
template <class T, class C, int kElements>
__global__ void plainKernel(const AttentionArgs args) {
  extern __shared__ float warpSums[];  // [kWarps, headDim]
  __shared__ float warpMaxima[kWarps];
  __shared__ float warpWeights[kWarps];
  waitForPrevious();
  const auto row = static_cast<int32_t>(blockIdx.z);
  const int32_t slot = args.slots[row];
  if (slot < 0) return;
  const auto query = static_cast<int32_t>(blockIdx.x);
  const int32_t token = args.queryStarts[row] + query;
  if (token >= args.queryStarts[row + 1]) return;

  const auto head = static_cast<int32_t>(blockIdx.y);
  const int32_t kvHead = head / args.group;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t headDim = args.headDim;
  const int32_t* blocks = args.blocksOf(slot);

  const T* from = static_cast<const T*>(args.qkv) + token * args.qkvWidth + head * headDim;
  // With a softcap, products are those of AttentionArgs::capped.
  const float factorOfQuery = args.capFactor == 0.0f ? args.scale : 1.0f;
  float queries[kElements];
  float sums[kElements];
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int element = lane + i * kWarpSize;
    queries[i] = element < headDim ? widen(from[element]) * factorOfQuery : 0.0f;
    sums[i] = 0.0f;
  }

  float maximum = kMasked;
  float weights = 0.0f;
  const int32_t position = args.numComputedTokens[row] + query;
  for (int32_t key = args.firstKey(position) + warp; key <= position; key += kWarps) {
    const int64_t cacheSlot = args.cacheSlot(blocks, key);
    const int64_t offset = (cacheSlot * args.numKvHeads + kvHead) * headDim;
    const C* keys = static_cast<const C*>(args.keys) + offset;
    const C* values = static_cast<const C*>(args.values) + offset;
    float score = 0.0f;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int element = lane + i * kWarpSize;
      if (element < headDim) score = fmaf(queries[i], widen(keys[element]), score);
    }
    score = warpSum(score);
    if (args.capFactor != 0.0f) score = args.scale * args.capped(score);
    const float best = fmaxf(maximum, score);
    const float factor = exp2f(maximum - best);
    const float weight = exp2f(score - best);
    maximum = best;
    weights = weights * factor + weight;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int element = lane + i * kWarpSize;
      if (element < headDim) sums[i] = fmaf(weight, widen(values[element]), sums[i] * factor);
    }
  }

#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int element = lane + i * kWarpSize;
    if (element < headDim) warpSums[warp * headDim + element] = sums[i];
  }
  if (lane == 0) {
    warpMaxima[warp] = maximum;
    warpWeights[warp] = weights;
  }
  __syncthreads();
  float best = kMasked;
  for (int w = 0; w < kWarps; ++w) best = fmaxf(best, warpMaxima[w]);
  T* to =
      static_cast<T*>(args.out) + (static_cast<int64_t>(token) * args.numHeads + head) * headDim;
  for (auto element = static_cast<int32_t>(threadIdx.x); element < headDim;
       element += kWarps * kWarpSize) {
    float sum = 0.0f;
    float weight = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2f(warpMaxima[w] - best);
      sum = fmaf(warpSums[w * headDim + element], factor, sum);
      weight = fmaf(warpWeights[w], factor, weight);
    }
    if (args.sinks) {
      const T sink = static_cast<const T*>(args.sinks)[head];
      weight += exp2f(widen(sink) * AttentionArgs::kLog2E - best);
    }
    if constexpr (kIsFloat8<C>) sum *= args.valueScale;
    to[element] = narrow<T>(sum / weight);
  }
}

}  // namespace

void attentionPlain(const AttentionArgs& args, DType type, bool isFloat8, int32_t maxQueryLen,
                    cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(maxQueryLen), static_cast<unsigned>(args.numHeads),
                  static_cast<unsigned>(args.numRows));
  const size_t sharedBytes = sizeof(float) * static_cast<size_t>(kWarps * args.headDim);
  withCacheType(type, isFloat8, [&]<class T, class C>(T, C) {
    const auto attend = [&](auto kernel) {
      launch(kernel, grid, kWarps * kWarpSize, sharedBytes, stream, args);
    };
    const int32_t elements = ceilDiv(args.headDim, kWarpSize);  // per lane
    if (elements <= 1) {
      attend(plainKernel<T, C, 1>);
    } else if (elements <= 4) {
      attend(plainKernel<T, C, 4>);
    } else if (elements <= 16) {
      attend(plainKernel<T, C, 16>);
    } else {
      throw Error("NOT_SUPPORTED",
                  "CUDA attention supports head sizes of at most 512; this model's is " +
                      std::to_string(args.headDim));
    }
  });
  check(cudaGetLastError(), "attentionPlain");
}

}  // namespace uniproc::cuda
