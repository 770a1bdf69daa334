// Attention of a row with one query to its keys in chunks, within one block, for
// attention_decode_few.cu.
//
// A row's keys are divided into chunks, by their number alone, so that a row's sums have the same
// order in clusters of any size: up to 8 chunks of at least 64 keys (less if the row has fewer),
// made of strips of 16 keys. A block processes whole chunks, each with four warps that take every
// fourth strip, and merges the warps' results. Chunks are merged in key order, by log-sum-exp (Dao
// et al. 2023, FlashDecoding).
//
// Keys and values go from the cache to registers, in the layouts that the products need: shared
// memory is for the queries and the results, so little that the kernel fits beside two products
// (linear_stream.cu).
#pragma once

#include <algorithm>

#include "ops/cuda/attention.cuh"
#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/rope.cuh"

namespace uniproc::cuda::decode_few {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int32_t kHeads = 8;        // maximum query heads that share loads: the columns of mma's B
constexpr int32_t kStrip = 16;       // keys per step of a warp
constexpr int32_t kChunkStrips = 4;  // per chunk, unless there would be more than kMaxChunks
constexpr int32_t kMaxChunks = 8;    // per row

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

// out: address of the part's four elements, of query head `head`.
template <class T>
__device__ inline void store(const AttentionArgs& args, int32_t head, const Part& part, T* out) {
  const float sink = args.template sinkWeight<T>(head, part.stats.x);
  const float factor = __fdiv_rn(1.0f, __fadd_rn(part.stats.y, sink));
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

// A block's shared memory: the row's own key and value with rope, the queries of up to `heads`
// heads, and the warps' results over a chunk.
template <class T, int kHeadDim>
class Memory {
 public:
  __device__ Memory(void* shared, int32_t heads)
      : fresh_(static_cast<T*>(shared)),
        queries_(fresh_ + 2 * kHeadDim),
        sums_(reinterpret_cast<float*>(queries_ + heads * kTileStride<kHeadDim>)),
        stats_(reinterpret_cast<float2*>(sums_ + kWarps * heads * kHeadDim)),
        heads_(heads) {}

  static size_t bytes(int32_t heads) {
    constexpr size_t kBytesPerHead =
        kTileStride<kHeadDim> * sizeof(T) + kWarps * (kHeadDim * sizeof(float) + sizeof(float2));
    return 2 * kHeadDim * sizeof(T) + heads * kBytesPerHead;
  }
  __device__ void* end() const { return stats_ + kWarps * heads_; }

  __device__ T* key() const { return fresh_; }
  __device__ T* value() const { return fresh_ + kHeadDim; }
  __device__ T* query(int head) const { return queries_ + head * kTileStride<kHeadDim>; }
  // Four elements, or two, of a warp's sums [heads, headDim]. Stores of four heads at once go to
  // different banks.
  template <class Elements>
  __device__ Elements& sums(int warp, int head, int element) const {
    constexpr int kOffsets = kHeadDim / 8 < 4 ? kHeadDim / 8 : 4;
    return *reinterpret_cast<Elements*>(sums_ + (warp * heads_ + head) * kHeadDim +
                                        (element ^ head / 2 % kOffsets * 8));
  }
  __device__ float2& stats(int warp, int head) const { return stats_[warp * heads_ + head]; }

 private:
  T* fresh_;
  T* queries_;
  float* sums_;
  float2* stats_;
  int32_t heads_;
};

// The block rotates the run's queries into `memory` and, if the run includes the row's own key,
// that key and value too and, in the first group of its KV head, into the cache. Waits for the
// previous kernel after reading the angles.
template <class T, int kHeadDim, class Wait>
__device__ void rotateHeads(const AttentionArgs& args, const RopeArgs& rope, const Run& run,
                            const Chunks& chunks, const Memory<T, kHeadDim>& memory, Wait wait) {
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
  if (hasElements && rope.table) {
    loadWidened<N>(angles + i, cos);
    loadWidened<N>(angles + kHalf + i, sin);
  }
  int64_t cacheOffset = 0;
  if (writesCache) {
    const int32_t slot = args.cacheSlot(args.blocksOf(args.slots[run.row]), position);
    cacheOffset = (int64_t{slot} * args.numKvHeads + run.kvHead) * kHeadDim;
  }
  const T* qkv = static_cast<const T*>(args.qkv) + args.queryStarts[run.row] * args.qkvWidth;
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
        normalize<T>(low, factor, lowWeights, rope.normOffset);
        normalize<T>(high, factor, highWeights, rope.normOffset);
      }
    }
    if (!exists) continue;
    if (!isValue && rope.table) rotate(low, high, cos, sin);
    T* to = isQuery ? memory.query(h) : isValue ? memory.value() : memory.key();
    storeNarrowed<N>(to + i, low);
    storeNarrowed<N>(to + kHalf + i, high);
    if (!isQuery && writesCache) {
      T* cached = static_cast<T*>(isValue ? rope.values : rope.keys) + cacheOffset;
      storeNarrowed<N>(cached + i, low);
      storeNarrowed<N>(cached + kHalf + i, high);
    }
  }
}

// Transposes an 8x8 matrix of 2-byte elements, of which lane 4 i + j holds row i at columns 2 j.
__device__ inline uint32_t transposed(uint32_t pair) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// Keys and values of a strip in the registers of a warp, as left operands of mma.m16n8k16 (mma.cuh)
// for two products: scores^T [keys, heads] = keys queries^T, and out^T [headDim, heads] = values^T
// weights^T. Columns may map to a product's k in any order that both operands share.
template <class T, int kHeadDim>
class StripOperands {
 public:
  // Lane 4 i + j has the pieces j, j + 4, ... of 16 bytes of keys i and i + 8.
  static constexpr int kPieces = (kHeadDim + 31) / 32;
  // It has of values 2 j, 2 j + 1, 2 j + 8 and 2 j + 9 the pieces i, i + 8, ... of kPieceWords
  // words.
  static constexpr int kWords = kHeadDim / 16;
  static constexpr int kPieceWords = kWords % 4 == 0 ? 4 : kWords % 2 == 0 ? 2 : 1;

  // The first of the two adjacent elements in word w of this lane's values.
  __device__ static int elementOf(int w) {
    return (w / kPieceWords * 8 + lane() / 4) * (2 * kPieceWords) + w % kPieceWords * 2;
  }

  // Lane l (modulo 16) passes the address of key l, or null for zeros.
  __device__ void loadKeys(const T* key) {
#pragma unroll
    for (int h = 0; h < 2; ++h) readKey(h, fromLane(key, lane() / 4 + 8 * h));
  }
  __device__ void loadValues(const T* value) {
#pragma unroll
    for (int v = 0; v < 4; ++v) readValue(v, fromLane(value, rowOfValue(v)));
  }
  // Replaces row `row`.
  __device__ void replace(int row, const T* key, const T* value) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row == lane() / 4 + 8 * h) readKey(h, key);
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      if (row == rowOfValue(v)) readValue(v, value);
    }
  }

  // `queries` [heads, headDim], rows of kTileStride elements. Lane 4 i + j gets the scores of keys
  // i (two) and i + 8 for heads 2 j and 2 j + 1.
  __device__ void computeScores(float (&scores)[4], const T* queries, int heads) const {
    const int i = lane() / 4;
    const int j = lane() % 4;
#pragma unroll
    for (int c = 0; c < 4; ++c) scores[c] = 0.0f;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int piece = j + 4 * p;
      uint4 q{};
      if (i < heads && piece < kHeadDim / 8) {
        q = *reinterpret_cast<const uint4*>(queries + i * kTileStride<kHeadDim> + piece * 8);
      }
      const uint4& low = keys_[0][p];
      const uint4& high = keys_[1][p];
      multiplyAdd<T>(scores, {low.x, high.x, low.y, high.y}, q.x, q.y);
      multiplyAdd<T>(scores, {low.z, high.z, low.w, high.w}, q.z, q.w);
    }
  }
  // out[w]: elements elementOf(w) of heads 2 j and 2 j + 1, then the next elements.
  __device__ void addValues(float (&out)[kWords][4], const float (&weights)[4]) const {
    const uint32_t b0 = transposed(pack<T>(weights[0], weights[1]));
    const uint32_t b1 = transposed(pack<T>(weights[2], weights[3]));
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint32_t a[4] = {__byte_perm(values_[0][w], values_[1][w], 0x5410),
                             __byte_perm(values_[0][w], values_[1][w], 0x7632),
                             __byte_perm(values_[2][w], values_[3][w], 0x5410),
                             __byte_perm(values_[2][w], values_[3][w], 0x7632)};
      multiplyAdd<T>(out[w], a, b0, b1);
    }
  }

 private:
  using Piece = std::conditional_t<kPieceWords == 4, uint4,
                                   std::conditional_t<kPieceWords == 2, uint2, uint32_t>>;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
  __device__ static int rowOfValue(int v) { return 2 * (lane() % 4) + v % 2 + v / 2 * 8; }
  __device__ static const T* fromLane(const T* pointer, int from) {
    const auto bits = reinterpret_cast<unsigned long long>(pointer);
    return reinterpret_cast<const T*>(__shfl_sync(kAllLanes, bits, from));
  }
  __device__ void readKey(int h, const T* key) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int piece = lane() % 4 + 4 * p;
      keys_[h][p] =
          key && piece < kHeadDim / 8 ? reinterpret_cast<const uint4*>(key)[piece] : uint4{};
    }
  }
  __device__ void readValue(int v, const T* value) {
#pragma unroll
    for (int p = 0; p < kWords / kPieceWords; ++p) {
      const Piece piece =
          value ? reinterpret_cast<const Piece*>(value)[p * 8 + lane() / 4] : Piece{};
      std::memcpy(values_[v] + p * kPieceWords, &piece, sizeof piece);
    }
  }

  uint4 keys_[2][kPieces];
  uint32_t values_[4][kWords];
};

// Processes a run and calls emit(chunk, element, part) for each group of four elements,
// starting at `element`, of the results [heads, headDim] of each chunk. With kFused, applies rope,
// and reads earlier keys before `wait`; without, qkv and the cache have rope applied. Call with all
// threads; `memory` may be reused after a barrier.
template <class T, int kHeadDim, bool kFused, class Wait, class Emit>
__device__ void attend(const AttentionArgs& args, const RopeArgs& rope, const Run& run,
                       const Chunks& chunks, const Memory<T, kHeadDim>& memory, Wait wait,
                       Emit emit) {
  using Operands = StripOperands<T, kHeadDim>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t* blocks = args.blocksOf(args.slots[run.row]);
  const int32_t cached = kFused ? chunks.end - 1 : chunks.end;  // keys to read from the cache

  Strips toLoad(chunks, run, warp);
  struct Next {
    int32_t key;    // this lane's; -1: none to read
    int32_t block;  // of the key; not used before the load, so that nothing waits for it
  };
  const auto findNext = [&]() -> Next {
    if (!toLoad.exists()) return {-1, 0};
    const int32_t key = chunks.firstKey(toLoad.strip()) + lane % kStrip;
    toLoad.advance();
    return {key >= chunks.begin && key < cached ? key : -1,
            blocks[args.blockIndex(min(key, chunks.end - 1))]};
  };
  const auto rowIn = [&](const void* cache, const Next& next) -> const T* {
    if (next.key < 0) return nullptr;
    const int64_t slot = args.cacheSlotIn(next.block, next.key);
    return static_cast<const T*>(cache) + (slot * args.numKvHeads + run.kvHead) * kHeadDim;
  };

  Operands operands;
  const Next first = findNext();
  Next next = findNext();
  if constexpr (!kFused) wait();
  operands.loadKeys(rowIn(args.keys, first));
  operands.loadValues(rowIn(args.values, first));
  if constexpr (kFused) {
    rotateHeads<T, kHeadDim>(args, rope, run, chunks, memory, wait);
  } else {
    const T* from = static_cast<const T*>(args.qkv) + args.queryStarts[run.row] * args.qkvWidth +
                    static_cast<int64_t>(run.head) * kHeadDim;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < run.heads * (kHeadDim / 8);
         i += kThreads) {
      const int32_t head = i / (kHeadDim / 8);
      const int32_t element = i % (kHeadDim / 8) * 8;
      storeVector<8>(memory.query(head) + element, loadVector<8>(from + head * kHeadDim + element));
    }
  }
  __syncthreads();

  for (int32_t chunk = run.firstChunk; chunk < run.lastChunk; ++chunk) {
    const int32_t begin = chunks.stripOf(chunk);
    const int32_t end = chunks.stripOf(chunk + 1);
    float out[Operands::kWords][4] = {};    // weighted sums of values, of heads 2 j and 2 j + 1
    float maximum[2] = {kMasked, kMasked};  // of these heads' scores so far
    float sum[2] = {};                      // of the weights of this lane's keys
    for (int32_t strip = begin + warp; strip < end; strip += kWarps) {
      const int32_t firstKey = chunks.firstKey(strip);
      if (kFused && firstKey + kStrip >= chunks.end) {
        operands.replace((chunks.end - 1) % kStrip, memory.key(), memory.value());
      }
      float weights[4];  // the scores, at first
      operands.computeScores(weights, memory.query(0), run.heads);
      operands.loadKeys(rowIn(args.keys, next));
      if (args.capFactor != 0.0f) {
#pragma unroll
        for (float& score : weights) score = args.capped(score);
      }
      if (firstKey < chunks.begin || firstKey + kStrip > chunks.end) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int32_t key = firstKey + lane / 4 + c / 2 * 8;
          if (key < chunks.begin || key >= chunks.end) weights[c] = kMasked;
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float best = fmaxf(maximum[h], fmaxf(weights[h], weights[h + 2]));
#pragma unroll
        for (int offset = 4; offset < kWarpSize; offset *= 2) {
          best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, offset));
        }
        const float base = best == kMasked ? 0.0f : best * args.scale;
        const float factor = powerOf2(maximum[h] * args.scale - base);
        maximum[h] = best;
        sum[h] *= factor;
#pragma unroll
        for (int c = h; c < 4; c += 2) {
          weights[c] = powerOf2(fmaf(weights[c], args.scale, -base));
          sum[h] += weights[c];
#pragma unroll
          for (int w = 0; w < Operands::kWords; ++w) out[w][c] *= factor;
        }
      }
      operands.addValues(out, weights);
      operands.loadValues(rowIn(args.values, next));
      next = findNext();
    }

    const int32_t warps = min(end - begin, kWarps);
    if (warp < warps) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int offset = 4; offset < kWarpSize; offset *= 2) {
          sum[h] += __shfl_xor_sync(kAllLanes, sum[h], offset);
        }
        const int head = lane % 4 * 2 + h;
        if (head >= run.heads) continue;
#pragma unroll
        for (int w = 0; w < Operands::kWords; ++w) {
          memory.template sums<float2>(warp, head, Operands::elementOf(w)) = {out[w][h],
                                                                              out[w][h + 2]};
        }
        if (lane / 4 == 0) memory.stats(warp, head) = {maximum[h], sum[h]};
      }
    }
    __syncthreads();
    // Sums the warps' results, in order.
    for (int32_t element = static_cast<int32_t>(threadIdx.x) * 4; element < run.heads * kHeadDim;
         element += kThreads * 4) {
      const int32_t head = element / kHeadDim;
      float best = kMasked;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        if (i < warps) best = fmaxf(best, memory.stats(i, head).x);
      }
      Part part{{0.0f, 0.0f, 0.0f, 0.0f}, {best, 0.0f}};
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        if (i >= warps) break;
        const float4 add = memory.template sums<float4>(i, head, element % kHeadDim);
        const float2 stats = memory.stats(i, head);
        const float factor = powerOf2(__fmul_rn(__fadd_rn(stats.x, -best), args.scale));
        part.stats.y = __fmaf_rn(stats.y, factor, part.stats.y);
        part.sums.x = __fmaf_rn(add.x, factor, part.sums.x);
        part.sums.y = __fmaf_rn(add.y, factor, part.sums.y);
        part.sums.z = __fmaf_rn(add.z, factor, part.sums.z);
        part.sums.w = __fmaf_rn(add.w, factor, part.sums.w);
      }
      emit(chunk, element, part);
    }
    if (chunk + 1 < run.lastChunk) __syncthreads();  // the results may be overwritten
  }
}

}  // namespace uniproc::cuda::decode_few
