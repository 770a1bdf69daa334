// Shared by the attention kernels: their arguments, addressing of the paged cache, and the division
// of a batch's rows into units of work.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "ops/cuda/device_math.cuh"
#include "ops/ops.h"

namespace uniproc::cuda {

// 2^x; 0 for -infinity; error below 2 units in the last place.
__device__ inline float powerOf2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Kernel arguments, passed by value. Query heads [kvHead * group, (kvHead + 1) * group) share the
// key and value head `kvHead`.
struct AttentionArgs {
  static constexpr float kLog2E = 1.4426950408889634f;

  const void* qkv;                   // [numTokens, qkvWidth]
  void* out;                         // [numTokens, numHeads * headDim]
  const void* keys;                  // [numBlocks, blockSize, numKvHeads, headDim], T or fp8
  const void* values;                // as keys
  const int32_t* slots;              // [numRows]
  const int32_t* numComputedTokens;  // [numRows]
  const int32_t* queryStarts;        // [numRows + 1]
  const int32_t* blockTable;         // [maxNumSeqs, maxBlocksPerSeq]
  int32_t maxBlocksPerSeq;
  int32_t blockSize;
  int32_t blockShift;  // log2(blockSize), or -1
  int32_t numRows;
  int32_t numHeads;
  int32_t numKvHeads;
  int32_t group;  // query heads per KV head
  int32_t headDim;
  int64_t qkvWidth;  // AttentionShape::rowWidth
  int32_t slidingWindow;
  bool isChunked;
  // Weights are powers of 2: of scale times the product of query and key, or, with a softcap, of
  // scale times its `capped`.
  float scale;
  float capFactor;    // 0: no softcap
  float valueScale;   // of a cache in fp8; that of its keys is in scale and capFactor
  const void* sinks;  // [numHeads] of the activations' type, or null

  AttentionArgs(const void* qkvIn, const Batch& batch, const AttentionShape& shape,
                const KvCache& cache, const RequestTable& requests, void* outIn)
      : qkv(qkvIn),
        out(outIn),
        keys(cache.keys),
        values(cache.values),
        slots(batch.slots),
        numComputedTokens(batch.numComputedTokens),
        queryStarts(batch.queryStarts),
        blockTable(requests.blockTable),
        maxBlocksPerSeq(requests.maxBlocksPerSeq),
        blockSize(cache.blockSize),
        blockShift(std::has_single_bit(static_cast<uint32_t>(cache.blockSize))
                       ? std::countr_zero(static_cast<uint32_t>(cache.blockSize))
                       : -1),
        numRows(batch.numRows),
        numHeads(shape.numHeads),
        numKvHeads(shape.numKvHeads),
        group(shape.numHeads / shape.numKvHeads),
        headDim(shape.headDim),
        qkvWidth(shape.rowWidth()),
        slidingWindow(shape.slidingWindow),
        isChunked(shape.isChunked),
        scale(kLog2E * (shape.softcap > 0.0f ? shape.softcap : shape.scale * cache.keyScale)),
        capFactor(shape.softcap > 0.0f
                      ? 2.0f * kLog2E * shape.scale * cache.keyScale / shape.softcap
                      : 0.0f),
        valueScale(cache.valueScale),
        sinks(shape.sinks.data) {}

  // The first key that the query at `position` attends to; does not decrease with the position.
  __device__ int32_t firstKey(int32_t position) const {
    if (isChunked && slidingWindow > 0) return position - position % slidingWindow;
    return slidingWindow == 0 ? 0 : max(position - slidingWindow + 1, 0);
  }

  // tanh of the product of query and key times shape.scale / shape.softcap, with an error of 2^-22:
  // 1 - 2 / (1 + e^2x).
  __device__ float capped(float product) const {
    return 1.0f - __fdividef(2.0f, 1.0f + powerOf2(product * capFactor));
  }

  // What a head's sink adds to the sum of weights, whose largest score is `maximum`.
  template <class T>
  __device__ float sinkWeight(int32_t head, float maximum) const {
    if (!sinks) return 0.0f;
    const float sink = widen(static_cast<const T*>(sinks)[head]);
    return powerOf2(__fmaf_rn(sink, kLog2E, -__fmul_rn(maximum, scale)));
  }

  // The factor of a query's sum of values in a cache of type C, by the sum of their weights.
  template <class C>
  __device__ float sumFactor(float weights) const {
    const float factor = 1.0f / weights;
    if constexpr (kIsFloat8<C>) return factor * valueScale;
    return factor;
  }

  __device__ int32_t numQueries(int32_t row) const {
    return queryStarts[row + 1] - queryStarts[row];
  }

  __device__ const int32_t* blocksOf(int32_t slot) const {
    return blockTable + static_cast<int64_t>(slot) * maxBlocksPerSeq;
  }

  // The cache slot of a request's key: block * blockSize + offset.
  __device__ int32_t cacheSlot(const int32_t* blocks, int32_t key) const {
    return cacheSlotIn(blocks[blockIndex(key)], key);
  }
  // The same in two steps: the block's index in the table, and the slot in the block found there.
  __device__ int32_t blockIndex(int32_t key) const {
    if (blockShift >= 0) return key >> blockShift;  // a division takes longer than the load
    return static_cast<int32_t>(static_cast<uint32_t>(key) / static_cast<uint32_t>(blockSize));
  }
  __device__ int32_t cacheSlotIn(int32_t block, int32_t key) const {
    return block * blockSize + key - blockIndex(key) * blockSize;
  }
};

// The units of work of all rows, concatenated. All threads of a block construct and query it
// together: each thread counts the units of some adjacent rows, and a scan sums them.
template <int kThreads, class UnitsOf>
class RowUnits {
 public:
  __device__ RowUnits(int32_t numRows, UnitsOf unitsOf) : unitsOf_(unitsOf) {
    __shared__ int32_t warpSums[kThreads / kWarpSize];
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const int lane = thread % kWarpSize;
    const int32_t rows = ceilDiv(numRows, kThreads);
    firstRow_ = min(thread * rows, numRows);
    const int32_t lastRow = min(firstRow_ + rows, numRows);
    for (int32_t row = firstRow_; row < lastRow; ++row) own_ += unitsOf_(row);

    int32_t sum = own_;  // sum over this and lower lanes
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int32_t other = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (lane == kWarpSize - 1) warpSums[thread / kWarpSize] = sum;
    __syncthreads();
    before_ = sum - own_;
#pragma unroll
    for (int warp = 0; warp < kThreads / kWarpSize; ++warp) {
      if (warp < thread / kWarpSize) before_ += warpSums[warp];
      total_ += warpSums[warp];
    }
  }

  __device__ int32_t total() const { return total_; }

  struct Place {
    int32_t row;
    int32_t unit;  // within the row
  };

  // The row and unit of 0 <= unit < total().
  __device__ Place find(int32_t unit) const {
    __shared__ Place place;
    if (unit >= before_ && unit < before_ + own_) {
      int32_t left = unit - before_;
      int32_t row = firstRow_;
      for (int32_t units = unitsOf_(row); left >= units; units = unitsOf_(row)) {
        left -= units;
        ++row;
      }
      place = {row, left};
    }
    __syncthreads();
    return place;
  }

 private:
  UnitsOf unitsOf_;
  int32_t firstRow_ = 0;
  int32_t own_ = 0;
  int32_t before_ = 0;
  int32_t total_ = 0;
};

// attention_decode.cu: rows with one query, split over the context. The heads of a group share the
// loads; partial results are merged by log-sum-exp (Dao et al. 2023, FlashDecoding). Uses tensor
// cores, for the types and head sizes of withTensorCores. `isFloat8`: the cache is in fp8.
void attentionDecode(const AttentionArgs& args, DType type, bool isFloat8, void* workspace,
                     int32_t numMultiprocessors, cudaStream_t stream);

// What Ops::ropeAndCache needs beyond AttentionArgs.
struct RopeArgs {
  const void* qNorm = nullptr;   // [headDim], or null
  const void* kNorm = nullptr;   // [headDim], or null
  float normOffset = 0.0f;       // of both
  const float* table = nullptr;  // [maxModelLen, 2, headDim / 2], or null
  void* keys = nullptr;          // the cache, as in AttentionArgs
  void* values = nullptr;
  float eps = 0.0f;
};

// attention_decode_few.cu: the same on Hopper and later (kernelsWait), for a batch with
// Batch::hasFewKeys. With `rope`, includes ropeAndCache, and leaves qkv as it is; then the batch
// must be a decode (Batch::isDecode), and the results have the same bits as those of two kernels.
void attentionDecodeFew(const AttentionArgs& args, const RopeArgs* rope, DType type,
                        int32_t numMultiprocessors, cudaStream_t stream);

// attention_prefill.cu: rows with several queries, causal over the paged cache (Dao 2023,
// FlashAttention-2), for the same types and head sizes. `batch` is the one in the arguments.
void attentionPrefill(const AttentionArgs& args, DType type, bool isFloat8, const Batch& batch,
                      cudaStream_t stream);

// attention_prefill_wgmma.cu: the same with Hopper's warpgroup products, where canPrefillWithWgmma:
// GPUs of compute capability 9.0 with code for sm_90a, half types, heads of 64 or 128, cache blocks
// of a multiple of 8 tokens, and no softcap: of the models with one only the largest has such
// heads.
bool canPrefillWithWgmma(const AttentionArgs& args, DType type);
void attentionPrefillWgmma(const AttentionArgs& args, DType type, const Batch& batch,
                           int32_t numMultiprocessors, cudaStream_t stream);

// Dynamic shared memory of a block of attentionDecode and attentionPrefill, which a cache in fp8
// takes less of; 0 where they have no kernel.
size_t attentionDecodeSharedBytes(DType type, int32_t headDim);
size_t attentionPrefillSharedBytes(DType type, int32_t headDim);

// attention_plain.cu: all rows, head sizes up to 512, all types; slow, without tensor cores. No row
// may have more than maxQueryLen queries. Throws Error NOT_SUPPORTED for a larger head.
void attentionPlain(const AttentionArgs& args, DType type, bool isFloat8, int32_t maxQueryLen,
                    cudaStream_t stream);

// Calls run.operator()<C>() with the type of a KV cache whose activations are T.
template <class T, class Run>
void withCacheOf(bool isFloat8, Run run) {
  if (isFloat8) return run.template operator()<__nv_fp8_e4m3>();
  run.template operator()<T>();
}

// Calls run.operator()<T, headDim>() and returns true if the tensor-core kernels support this type
// and head size.
template <class Run>
bool withTensorCores(DType type, int32_t headDim, Run run) {
  const auto withHeadDim = [&]<class T>() {
    switch (headDim) {
      case 16:
        run.template operator()<T, 16>();
        return true;
      case 32:
        run.template operator()<T, 32>();
        return true;
      case 64:
        run.template operator()<T, 64>();
        return true;
      case 96:
        run.template operator()<T, 96>();
        return true;
      case 128:
        run.template operator()<T, 128>();
        return true;
      case 256:
        run.template operator()<T, 256>();
        return true;
      default:
        return false;
    }
  };
  switch (type) {
    case DType::kFloat16:
      return withHeadDim.template operator()<__half>();
    case DType::kBFloat16:
      return withHeadDim.template operator()<__nv_bfloat16>();
    default:
      return false;
  }
}

}  // namespace uniproc::cuda
