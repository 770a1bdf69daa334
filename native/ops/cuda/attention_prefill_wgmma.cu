// Prefill attention on Hopper's warpgroup products: causal, over the paged cache, bound by
// arithmetic. attention_prefill.cu is the same computation for other GPUs and shapes.
//
// After Shah et al. 2024 (FlashAttention-3): producer warps copy keys and values with bulk tensor
// copies, and warpgroups of 64 query rows each compute. A warpgroup runs the products of the next
// tile's scores while it turns the present scores into weights.
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "ops/cuda/attention.cuh"
#include "ops/cuda/attention_wgmma.cuh"
#include "ops/cuda/attention_wgmma_consumer.cuh"
#include "ops/cuda/attention_wgmma_producers.cuh"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/tensor_map.h"

namespace uniproc::cuda {
namespace {

using prefill::CacheMaps;
using prefill::Tiles;

// Grid: one block per multiprocessor, or fewer; each takes units of kQueries query rows until none
// is left. numRows: rows with several queries. One warpgroup of producers, Tiles::kConsumers that
// compute. Shared memory: 209 to 225 KiB for heads of 128, 145 to 177 KiB for heads of 64. A unit
// reads each of its keys and values once, mostly from the L2 cache. Computes 4 * headDim operations
// per query and attended key; bound by the tensor cores, for heads of 64 also by one exponential
// per score.
template <class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, 1)
    prefillWgmmaKernel(const AttentionArgs args, const __grid_constant__ CacheMaps maps,
                       int32_t numRows) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ prefill::Shared<Tiles> shared;
  extern __shared__ unsigned char dynamicShared[];
  const uint32_t tiles =
      ceilDiv(sharedAddress(dynamicShared), Tiles::kAtomBytes) * Tiles::kAtomBytes;
  if (threadIdx.x == 0) prefill::initBarriers(shared);
  __syncthreads();

  if (threadIdx.x < kWarpgroupSize) {
    if constexpr (Tiles::kMovesRegisters) releaseRegisters<Tiles::kProducerRegisters>();
    const uint32_t warp = threadIdx.x / kWarpSize;
    if (warp == 0) {
      prefill::produceUnitsAndKeys<Tiles>(args, maps, numRows, shared, tiles);
    } else if (warp == 1) {
      prefill::produceValues<Tiles>(args, maps, shared, tiles);
    } else {
      prefill::produceQueries<Tiles>(args, shared, tiles, threadIdx.x - 2 * kWarpSize);
    }
  } else {
    if constexpr (Tiles::kMovesRegisters) acquireRegisters<Tiles::kConsumerRegisters>();
    waitForPrevious();
    prefill::Consumer<Tiles>(args, shared, tiles).run();
  }
#endif
}

// Rows with several queries, and their tokens.
struct Prompts {
  int32_t numRows;
  int32_t numTokens;
};

template <class Tiles>
void launchPrefill(const AttentionArgs& args, const Prompts& prompts, int32_t numMultiprocessors,
                   cudaStream_t stream) {
  // Upper bound: each row may have one partial tile.
  const int32_t most =
      (prompts.numTokens * args.group / Tiles::kQueries + prompts.numRows) * args.numKvHeads;
  constexpr bool kIsFloat16 = std::is_same_v<typename Tiles::Element, __half>;
  const int32_t boxKeys = std::gcd(args.blockSize, Tiles::kKeys);
  const auto map = [&](const void* base) {
    return cacheMap(base, kIsFloat16, args.numKvHeads, args.headDim, boxKeys);
  };
  const CacheMaps maps{map(args.keys), map(args.values), boxKeys};
  const auto kernel = prefillWgmmaKernel<Tiles>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kBytes),
        "cudaFuncSetAttribute of attentionPrefillWgmma");
  launch(kernel, static_cast<unsigned>(std::min(most, numMultiprocessors)), Tiles::kThreads,
         Tiles::kBytes, stream, args, maps, prompts.numRows);
  check(cudaGetLastError(), "attentionPrefillWgmma");
}

// Whether the kernel, as loaded on this thread's device, was compiled for sm_90a: otherwise its
// body is empty, and it has no static shared memory.
bool askDevice() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, prefillWgmmaKernel<Tiles<__nv_bfloat16, 128, 2>>),
        "cudaFuncGetAttributes of attentionPrefillWgmma");
  return attributes.sharedSizeBytes > 0;
}

}  // namespace

bool canPrefillWithWgmma(const AttentionArgs& args, DType type) {
  thread_local const bool hasKernels = askDevice();
  const bool isHalf = type == DType::kFloat16 || type == DType::kBFloat16;
  return hasKernels && isHalf && (args.headDim == 64 || args.headDim == 128) &&
         args.blockSize % 8 == 0 && args.capFactor == 0.0f;
}

void attentionPrefillWgmma(const AttentionArgs& args, DType type, const Batch& batch,
                           int32_t numMultiprocessors, cudaStream_t stream) {
  const Prompts prompts{batch.numRows - batch.numDecodeRows, batch.numTokens - batch.numDecodeRows};
  const auto run = [&]<class Tiles>() {
    launchPrefill<Tiles>(args, prompts, numMultiprocessors, stream);
  };
  // Tiles of more queries read less per query, tiles of fewer occupy more multiprocessors. All add
  // a query's keys in the same order, so that its result does not depend on the choice.
  const auto choose = [&]<class T>() {
    const int64_t queriesPerProcessor =
        int64_t{prompts.numTokens} * args.numHeads / numMultiprocessors;
    if (args.headDim == 128) {
      if (queriesPerProcessor <= 64) return run.template operator()<Tiles<T, 128, 1>>();
      return run.template operator()<Tiles<T, 128, 2>>();
    }
    if (queriesPerProcessor <= 64) return run.template operator()<Tiles<T, 64, 1>>();
    if (queriesPerProcessor < 2 * 192) return run.template operator()<Tiles<T, 64, 2>>();
    return run.template operator()<Tiles<T, 64, 3>>();
  };
  if (type == DType::kFloat16) {
    choose.template operator()<__half>();
  } else {
    choose.template operator()<__nv_bfloat16>();
  }
}

}  // namespace uniproc::cuda
