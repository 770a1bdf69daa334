// Rope and cache write, between the qkv projection and attention, in one launch.
#include <algorithm>
#include <type_traits>

#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/rope.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, class C>
struct RopeArguments {
  T* qkv;                     // [numTokens, (numHeads + 2 numKvHeads) * headDim]
  const T* qNorm;             // [headDim], or null
  const T* kNorm;             // [headDim], or null
  const float* rope;          // [maxModelLen, 2, headDim / 2], or null
  C* keys;                    // [numBlocks * blockSize, numKvHeads, headDim]
  C* values;                  // as keys
  const int32_t* positions;   // [numTokens]
  const int32_t* cacheSlots;  // [numTokens]; below 0: padding
  float normOffset;           // of both norms
  float eps;
  int32_t numHeads;
  int32_t numKvHeads;  // 0: rows of queries alone
  int32_t headDim;
  int32_t lanesPerHead;  // a power of two up to 32
  float keyScale;        // of a cache in fp8, which divide k and v
  float valueScale;
};

// lanesPerHead adjacent threads process a head of q, k or v, each N elements of its first half and
// their partners in the second. The norm rounds to T before the weight, as rmsNorm; later steps are
// float32 up to the store. Grid: (numTokens, heads * lanesPerHead / 256). Reads qkv once (with
// norms twice, the second time from L1), writes q and k back, and k and v to the cache, of type C.
template <class T, class C, int N>
__global__ void __launch_bounds__(kThreads) ropeAndCacheHeads(RopeArguments<T, C> a) {
  waitForPrevious();
  const int32_t cacheSlot = a.cacheSlots[blockIdx.x];
  if (cacheSlot < 0) return;
  const auto thread = static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
  const int32_t head = thread / a.lanesPerHead;
  const int32_t first = thread % a.lanesPerHead * N;
  const int32_t stride = a.lanesPerHead * N;
  const int32_t half = a.headDim / 2;
  const int32_t numRotated = a.numHeads + a.numKvHeads;
  const bool exists = head < numRotated + a.numKvHeads;  // all lanes take part in the sum
  const bool isQuery = head < a.numHeads;
  const bool isValue = head >= numRotated;
  T* x = a.qkv + (int64_t{blockIdx.x} * (numRotated + a.numKvHeads) + head) * a.headDim;

  const T* norm = isQuery ? a.qNorm : isValue ? nullptr : a.kNorm;
  float factor = 1;
  if (a.qNorm || a.kNorm) {
    float sum = 0;
    for (int32_t i = first; exists && i < half; i += stride) {
      float low[N];
      float high[N];
      loadWidened<N>(x + i, low);
      loadWidened<N>(x + half + i, high);
      sum = addSquares(sum, low, high);
    }
    factor = headFactor(sum, a.lanesPerHead, a.headDim, a.eps);
  }
  if (!exists) return;

  const float* angles = a.rope ? a.rope + int64_t{a.positions[blockIdx.x]} * a.headDim : nullptr;
  C* cached = nullptr;
  if (!isQuery) {
    const int32_t kvHead = head - (isValue ? numRotated : a.numHeads);
    cached =
        (isValue ? a.values : a.keys) + (int64_t{cacheSlot} * a.numKvHeads + kvHead) * a.headDim;
  }
  for (int32_t i = first; i < half; i += stride) {
    float low[N];
    float high[N];
    loadWidened<N>(x + i, low);
    loadWidened<N>(x + half + i, high);
    if (norm) {
      float lowWeights[N];
      float highWeights[N];
      loadWidened<N>(norm + i, lowWeights);
      loadWidened<N>(norm + half + i, highWeights);
      normalize<T>(low, factor, lowWeights, a.normOffset);
      normalize<T>(high, factor, highWeights, a.normOffset);
    }
    if (!isValue && angles) {
      float cos[N];
      float sin[N];
      loadWidened<N>(angles + i, cos);
      loadWidened<N>(angles + half + i, sin);
      rotate(low, high, cos, sin);
    }
    if (!isValue && (angles || norm)) {
      storeNarrowed<N>(x + i, low);
      storeNarrowed<N>(x + half + i, high);
    }
    if (cached) {
      if constexpr (kIsFloat8<C>) {
        const float scale = isValue ? a.valueScale : a.keyScale;
#pragma unroll
        for (int n = 0; n < N; ++n) {
          low[n] = __fdiv_rn(low[n], scale);
          high[n] = __fdiv_rn(high[n], scale);
        }
      }
      storeNarrowed<N>(cached + i, low);
      storeNarrowed<N>(cached + half + i, high);
    }
  }
}

template <class T, class C, int N>
void launchRope(RopeArguments<T, C> a, int32_t numTokens, cudaStream_t stream) {
  a.lanesPerHead = lanesPerHead<N>(a.headDim);
  const int32_t threads = (a.numHeads + 2 * a.numKvHeads) * a.lanesPerHead;
  const dim3 grid(static_cast<unsigned>(numTokens),
                  static_cast<unsigned>(ceilDiv(threads, kThreads)));
  launch(ropeAndCacheHeads<T, C, N>, grid, kThreads, 0, stream, a);
}

}  // namespace

void ropeAndCache(void* qkv, const Batch& batch, const AttentionShape& shape, const Weight& qNorm,
                  const Weight& kNorm, float eps, const float* rope, const KvCache& cache,
                  DType type, cudaStream_t stream) {
  if (batch.numTokens == 0) return;
  withCacheType(type, cache.isFloat8(), [&](auto element, auto cacheElement) {
    using T = decltype(element);
    using C = decltype(cacheElement);
    const RopeArguments<T, C> arguments{static_cast<T*>(qkv),
                                        static_cast<const T*>(qNorm.data),
                                        static_cast<const T*>(kNorm.data),
                                        rope,
                                        static_cast<C*>(cache.keys),
                                        static_cast<C*>(cache.values),
                                        batch.positions,
                                        batch.cacheSlots,
                                        qNorm.offset,
                                        eps,
                                        shape.numHeads,
                                        shape.hasKeys ? shape.numKvHeads : 0,
                                        shape.headDim,
                                        0,
                                        cache.keyScale,
                                        cache.valueScale};
    const auto addresses = {static_cast<const void*>(qkv),
                            qNorm.data,
                            kNorm.data,
                            static_cast<const void*>(rope),
                            static_cast<const void*>(cache.keys),
                            static_cast<const void*>(cache.values)};
    constexpr int N = kElementsPerAccess<T>;
    if (shape.headDim / 2 % N == 0 && std::ranges::all_of(addresses, isAligned)) {
      launchRope<T, C, N>(arguments, batch.numTokens, stream);
    } else {
      launchRope<T, C, 1>(arguments, batch.numTokens, stream);
    }
  });
}

}  // namespace uniproc::cuda
