// Attention of a row with one query to its keys in chunks, within one block, for
// attention_decode_few.cu.
//
// A row's keys are divided into chunks, by their number alone, so that a row's sums have the same
// order in clusters of any size: up to 16 chunks of at least 128 keys (less if the row has fewer),
// made of strips of 16 keys. A block processes whole chunks, each with four warps that take every
// fourth strip, merges the warps' results, and continues with the next chunk while its copies
// arrive. Chunks are merged in key order, by log-sum-exp (Dao et al. 2023, FlashDecoding).
#pragma once

#include <algorithm>

#include "ops/cuda/attention.cuh"
#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/rope.cuh"

namespace uniproc::cuda::decode_few {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int32_t kHeads = 16;       // maximum query heads that share loads: the rows of mma's A
constexpr int32_t kStrip = 16;       // keys per step of a warp
constexpr int32_t kChunkStrips = 8;  // per chunk, unless there would be more than kMaxChunks
constexpr int32_t kMaxChunks = 16;   // per row

// A result over some of the keys: four elements of a head, and the head's statistics.
struct Part {
  float4 sums;   // weighted sums of values
  float2 stats;  // maximum score, sum of weights
};

// `part` and `next`, whose keys follow. `scale` as in AttentionArgs.
__device__ inline Part fold(const Part& part, const Part& next, float scale) {
  const float best = fmaxf(part.stats.x, next.stats.x);
  const float a = powerOf2(__fmul_rn(__fadd_rn(part.stats.x, -best), scale));
  const float b = powerOf2(__fmul_rn(__fadd_rn(next.stats.x, -best), scale));
  return {{__fmaf_rn(next.sums.x, b, __fmul_rn(part.sums.x, a)),
           __fmaf_rn(next.sums.y, b, __fmul_rn(part.sums.y, a)),
           __fmaf_rn(next.sums.z, b, __fmul_rn(part.sums.z, a)),
           __fmaf_rn(next.sums.w, b, __fmul_rn(part.sums.w, a))},
          {best, __fmaf_rn(next.stats.y, b, __fmul_rn(part.stats.y, a))}};
}

// out: address of the part's four elements.
template <class T>
__device__ inline void store(T* out, const Part& part) {
  const float factor = __fdiv_rn(1.0f, part.stats.y);
  const float scaled[4] = {part.sums.x * factor, part.sums.y * factor, part.sums.z * factor,
                           part.sums.w * factor};
  storeNarrowed<4>(out, scaled);
}

// A row's keys, in strips that start at multiples of 16, and its chunks.
struct Chunks {
  int32_t begin;  // keys [begin, end)
  int32_t end;
  int32_t strips;
  int32_t count;  // 0 for a row that decode kernels skip: padding, or several queries

  __device__ Chunks(const AttentionArgs& args, int32_t row) {
    const int32_t position = args.numComputedTokens[row];
    const bool exists = args.slots[row] >= 0 && args.numQueries(row) == 1;
    begin = args.firstKey(position);
    end = position + 1;
    strips = exists ? ceilDiv(end, kStrip) - begin / kStrip : 0;
    count = min(ceilDiv(strips, kChunkStrips), kMaxChunks);
  }

  // The first strip of a chunk.
  __device__ int32_t stripOf(int32_t chunk) const { return chunk * strips / count; }
  __device__ int32_t firstKey(int32_t strip) const { return (begin / kStrip + strip) * kStrip; }
};

// Chunks [firstChunk, lastChunk) of a row, for the query heads [head, head + heads) of a KV head.
struct Run {
  int32_t row;
  int32_t kvHead;
  int32_t head;
  int32_t heads;  // up to kHeads
  int32_t firstChunk;
  int32_t lastChunk;
};

// The KV heads' query heads in groups of up to kHeads.
__host__ __device__ inline int32_t groupsPerKvHead(int32_t headsPerKvHead) {
  return ceilDiv(headsPerKvHead, kHeads);
}
__device__ inline Run runOf(const AttentionArgs& args, int32_t row, int32_t group, int32_t first,
                            int32_t last) {
  const int32_t parts = groupsPerKvHead(args.group);
  const int32_t kvHead = group / parts;
  const int32_t firstHead = group % parts * kHeads;
  return {row,   kvHead, kvHead * args.group + firstHead, min(args.group - firstHead, kHeads),
          first, last};
}

// A warp's strips of a run, in order.
class Strips {
 public:
  __device__ Strips(const Chunks& chunks, const Run& run, int warp)
      : chunks_(chunks), warp_(warp), chunk_(run.firstChunk), last_(run.lastChunk) {
    strip_ = chunks_.stripOf(chunk_) + warp_;
    end_ = chunks_.stripOf(chunk_ + 1);
    settle();
  }
  __device__ bool exists() const { return chunk_ < last_; }
  __device__ int32_t strip() const { return strip_; }
  __device__ void advance() {
    strip_ += kWarps;
    settle();
  }

 private:
  __device__ void settle() {
    while (strip_ >= end_ && ++chunk_ < last_) {
      strip_ = chunks_.stripOf(chunk_) + warp_;
      end_ = chunks_.stripOf(chunk_ + 1);
    }
  }

  const Chunks& chunks_;
  const int warp_;
  int32_t chunk_;
  const int32_t last_;
  int32_t strip_;
  int32_t end_;
};

// A block's shared memory, in front of `queries`: that has a row for each head of a run, at least,
// of which products read kHeads.
template <class T, int kHeadDim, int kStages>
struct Memory {
  static constexpr uint32_t kStripBytes = kStrip * kTileStride<kHeadDim> * sizeof(T);
  static constexpr uint32_t kStageBytes = 2 * kStripBytes;
  static constexpr uint32_t kQueryBytes = kTileStride<kHeadDim> * sizeof(T);

  // Each warp's ring of strips, keys then values. A warp's results over a chunk take the place of
  // its last strip.
  unsigned char ring[kWarps][kStages][kStageBytes];
  T fresh[2][kHeadDim];       // the row's own key and value, with rope
  int32_t lastStage[kWarps];  // where the results are

  __device__ T* queries() { return reinterpret_cast<T*>(this + 1); }
  // Four elements, or two, of a warp's sums [kHeads, kHeadDim]. Stores of four heads at once go to
  // different banks.
  template <class Elements>
  __device__ Elements& sums(int warp, int stage, int head, int element) {
    constexpr int kOffsets = kHeadDim / 8 < 4 ? kHeadDim / 8 : 4;
    auto* all = reinterpret_cast<float*>(ring[warp][stage]);
    return *reinterpret_cast<Elements*>(all + head * kHeadDim + (element ^ head % kOffsets * 8));
  }
  __device__ float2& stats(int warp, int stage, int head) {
    auto* all = reinterpret_cast<float*>(ring[warp][stage]);
    return reinterpret_cast<float2*>(all + kHeads * kHeadDim)[head];
  }
  static_assert(kStageBytes >= kHeads * (kHeadDim * sizeof(float) + sizeof(float2)));

  // Shared memory of a block that places `after` bytes behind the queries of `heads` heads.
  static size_t bytes(int32_t heads, size_t after) {
    return sizeof(Memory) + std::max(heads * kQueryBytes + after, size_t{kHeads * kQueryBytes});
  }
};

// The block rotates the run's queries into memory.queries() and, if the run includes the row's own
// key, that key and value into memory.fresh and, in the first group of its KV head, into the cache.
// Waits for the previous kernel after reading the angles.
template <class T, int kHeadDim, int kStages, class Wait>
__device__ void rotateHeads(const AttentionArgs& args, const RopeArgs& rope, const Run& run,
                            const Chunks& chunks, Memory<T, kHeadDim, kStages>& memory, Wait wait) {
  constexpr int N = kElementsPerAccess<T>;
  constexpr int32_t kLanes = lanesPerHead<N>(kHeadDim);
  constexpr int32_t kHalf = kHeadDim / 2;
  constexpr int32_t kHeadsAtOnce = kThreads / kLanes;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t i = thread % kLanes * N;
  const bool hasElements = i < kHalf;
  const int32_t position = chunks.end - 1;
  const bool withKey = run.lastChunk == chunks.count;
  const bool writesCache = withKey && run.head == run.kvHead * args.group;
  const float* angles = rope.table + int64_t{position} * kHeadDim;
  float cos[N] = {};
  float sin[N] = {};
  if (hasElements) {
    loadWidened<N>(angles + i, cos);
    loadWidened<N>(angles + kHalf + i, sin);
  }
  int64_t cacheOffset = 0;
  if (writesCache) {
    const int32_t slot = args.cacheSlot(args.blocksOf(args.slots[run.row]), position);
    cacheOffset = (int64_t{slot} * args.numKvHeads + run.kvHead) * kHeadDim;
  }
  const T* qkv = static_cast<const T*>(args.qkv) + args.queryStarts[run.row] * args.qkvWidth();
  wait();

  const int32_t total = run.heads + (withKey ? 2 : 0);
  for (int32_t base = 0; base < total; base += kHeadsAtOnce) {
    const int32_t h = base + thread / kLanes;
    const bool exists = h < total && hasElements;
    const bool isQuery = h < run.heads;
    const bool isValue = h == run.heads + 1;
    const int32_t head = isQuery   ? run.head + h
                         : isValue ? args.numHeads + args.numKvHeads + run.kvHead
                                   : args.numHeads + run.kvHead;
    const T* x = qkv + head * kHeadDim;
    const auto* norm = static_cast<const T*>(isQuery ? rope.qNorm : isValue ? nullptr : rope.kNorm);
    float low[N] = {};
    float high[N] = {};
    float lowWeights[N] = {};
    float highWeights[N] = {};
    if (exists) {
      loadWidened<N>(x + i, low);
      loadWidened<N>(x + kHalf + i, high);
      if (norm) {
        loadWidened<N>(norm + i, lowWeights);
        loadWidened<N>(norm + kHalf + i, highWeights);
      }
    }
    if (rope.qNorm || rope.kNorm) {
      const float factor = headFactor(addSquares(0.0f, low, high), kLanes, kHeadDim, rope.eps);
      if (norm) {
        normalize<T>(low, factor, lowWeights);
        normalize<T>(high, factor, highWeights);
      }
    }
    if (!exists) continue;
    if (!isValue) rotate(low, high, cos, sin);
    T* to = isQuery ? memory.queries() + h * kTileStride<kHeadDim> : memory.fresh[isValue ? 1 : 0];
    storeNarrowed<N>(to + i, low);
    storeNarrowed<N>(to + kHalf + i, high);
    if (!isQuery && writesCache) {
      T* cached = static_cast<T*>(isValue ? rope.values : rope.keys) + cacheOffset;
      storeNarrowed<N>(cached + i, low);
      storeNarrowed<N>(cached + kHalf + i, high);
    }
  }
}

// Processes a run and calls emit(chunk, element, part) for each group of four elements,
// starting at `element`, of the results [heads, headDim] of each chunk. With kFused, applies rope,
// and reads earlier keys before `wait`; without, qkv and the cache have rope applied. Call with all
// threads; `memory` may be reused after a barrier.
template <class T, int kHeadDim, int kStages, bool kFused, class Wait, class Emit>
__device__ void attend(const AttentionArgs& args, const RopeArgs& rope, const Run& run,
                       const Chunks& chunks, Memory<T, kHeadDim, kStages>& memory, Wait wait,
                       Emit emit) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t* blocks = args.blocksOf(args.slots[run.row]);
  const int32_t copied = kFused ? chunks.end - 1 : chunks.end;  // keys to read from the cache

  Strips toCopy(chunks, run, warp);
  struct Next {
    bool exists;
    int32_t key;    // this lane's
    int32_t block;  // of the key; not used before the copy, so that nothing waits for its load
  };
  const auto findNext = [&]() -> Next {
    if (!toCopy.exists()) return {false, 0, 0};
    const int32_t key = chunks.firstKey(toCopy.strip()) + lane % kStrip;
    toCopy.advance();
    return {true, key, blocks[args.blockIndex(min(key, chunks.end - 1))]};
  };
  const auto copy = [&](int stage, const Next& strip) {
    const uint32_t to = sharedAddress(memory.ring[warp][stage]);
    if (strip.exists) {
      const bool isRead = strip.key >= chunks.begin && strip.key < copied;
      copyKeysAndValues<T, kHeadDim, kStrip>(
          to, to + Memory<T, kHeadDim, kStages>::kStripBytes, args, run.kvHead,
          isRead ? args.cacheSlotIn(strip.block, strip.key) : -1);
    }
    commitCopies();
  };
  Next strips[kStages];
#pragma unroll
  for (int i = 0; i < kStages; ++i) strips[i] = findNext();
  if constexpr (!kFused) wait();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy(i, strips[i]);
  Next next = strips[kStages - 1];
  if constexpr (kFused) {
    rotateHeads<T, kHeadDim, kStages>(args, rope, run, chunks, memory, wait);
  } else {
    const T* from = static_cast<const T*>(args.qkv) + args.queryStarts[run.row] * args.qkvWidth() +
                    static_cast<int64_t>(run.head) * kHeadDim;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < run.heads * (kHeadDim / 8);
         i += kThreads) {
      const int32_t head = i / (kHeadDim / 8);
      const int32_t element = i % (kHeadDim / 8) * 8;
      storeVector<8>(memory.queries() + head * kTileStride<kHeadDim> + element,
                     loadVector<8>(from + head * kHeadDim + element));
    }
  }
  __syncthreads();

  int stage = 0;
  for (int32_t chunk = run.firstChunk; chunk < run.lastChunk; ++chunk) {
    const int32_t begin = chunks.stripOf(chunk);
    const int32_t end = chunks.stripOf(chunk + 1);
    QueryRows<T, kHeadDim, 1> rows;
    int last = 0;
    for (int32_t strip = begin + warp; strip < end; strip += kWarps) {
      waitForCopies<kStages - 2>();
      __syncwarp();  // this strip is loaded; all lanes are done with the previous one
      copy(stage == 0 ? kStages - 1 : stage - 1, next);
      next = findNext();

      unsigned char* own = memory.ring[warp][stage];
      const int32_t firstKey = chunks.firstKey(strip);
      if (kFused && firstKey + kStrip >= chunks.end) {
        constexpr int kParts = kHeadDim / 8;
        const int32_t row = (chunks.end - 1) % kStrip;
        for (int i = lane; i < 2 * kParts; i += kWarpSize) {
          auto* to = reinterpret_cast<T*>(own) + i / kParts * kStrip * kTileStride<kHeadDim> +
                     row * kTileStride<kHeadDim> + i % kParts * 8;
          storeVector<8>(to, loadVector<8>(memory.fresh[i / kParts] + i % kParts * 8));
        }
        __syncwarp();
      }
      const uint32_t keys = sharedAddress(own);
      float scores[1][kStrip / 8][4];
      rows.template computeScores<kStrip>(
          scores, sharedAddress(memory.queries()) + matrixOffset<kHeadDim>(),
          keys + keysOffset<kHeadDim>());
      if (firstKey < chunks.begin || firstKey + kStrip > chunks.end) {
#pragma unroll
        for (int n = 0; n < kStrip / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int32_t key = firstKey + n * 8 + lane % 4 * 2 + c % 2;
            if (key < chunks.begin || key >= chunks.end) scores[0][n][c] = kMasked;
          }
        }
      }
      rows.template scoresToWeights<kStrip>(scores, args.scale);
      rows.template addValues<kStrip>(
          scores, keys + Memory<T, kHeadDim, kStages>::kStripBytes + matrixOffset<kHeadDim>());
      last = stage;
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }

    const int32_t warps = min(end - begin, kWarps);
    if (warp < warps) {
      rows.finishSums();
      __syncwarp();  // all lanes are done with the strip
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = lane / 4 + h * 8;
        if (row >= run.heads) continue;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
          memory.template sums<float2>(warp, last, row, n * 8 + lane % 4 * 2) = {
              rows.out[0][n][2 * h], rows.out[0][n][2 * h + 1]};
        }
        if (lane % 4 == 0) memory.stats(warp, last, row) = {rows.maximum[0][h], rows.sum[0][h]};
      }
      if (lane == 0) memory.lastStage[warp] = last;
    }
    __syncthreads();
    // Sums the warps' results, in order.
    for (int32_t element = static_cast<int32_t>(threadIdx.x) * 4; element < run.heads * kHeadDim;
         element += kThreads * 4) {
      const int32_t head = element / kHeadDim;
      float2 stats[kWarps];
      float best = kMasked;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        if (i >= warps) break;
        stats[i] = memory.stats(i, memory.lastStage[i], head);
        best = fmaxf(best, stats[i].x);
      }
      Part part{{0.0f, 0.0f, 0.0f, 0.0f}, {best, 0.0f}};
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        if (i >= warps) break;
        const float4 add =
            memory.template sums<float4>(i, memory.lastStage[i], head, element % kHeadDim);
        const float factor = powerOf2(__fmul_rn(__fadd_rn(stats[i].x, -best), args.scale));
        part.stats.y = __fmaf_rn(stats[i].y, factor, part.stats.y);
        part.sums.x = __fmaf_rn(add.x, factor, part.sums.x);
        part.sums.y = __fmaf_rn(add.y, factor, part.sums.y);
        part.sums.z = __fmaf_rn(add.z, factor, part.sums.z);
        part.sums.w = __fmaf_rn(add.w, factor, part.sums.w);
      }
      emit(chunk, element, part);
    }
    if (chunk + 1 < run.lastChunk) __syncthreads();  // the results' stages are free again
  }
}

}  // namespace uniproc::cuda::decode_few
