// Decode attention, for rows with one query. Reads each row's keys and values once, so it is bound
// by memory.
//
// The work is the tiles of 64 keys of all rows and groups of up to 16 query heads, concatenated;
// each block takes an equal run of tiles. The grid is the number of blocks that fit on the device
// at once, and row lengths are read on the device. Each of a block's warps processes every fourth
// strip of 16 keys through its own ring of asynchronous copies; warps synchronize only at the end.
// If a group's keys span several blocks, the last block to arrive merges the partial results in key
// order (Dao et al. 2023, FlashDecoding).
#include <algorithm>

#include "ops/cuda/attention.cuh"
#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int32_t kHeads = 16;  // maximum query heads that share loads: the rows of mma's A
constexpr int32_t kStrip = 16;  // keys per step of a warp
constexpr int32_t kTile = kWarps * kStrip;  // keys per step of a block
constexpr int32_t kMinTiles = 2;            // per block: fewer do not pay for a merge

// Resident blocks per multiprocessor, limited by registers and shared memory.
constexpr int32_t kMaxBlocksPerProcessor = 3;
constexpr int32_t blocksPerProcessor(int32_t headDim) {
  return headDim <= 64 ? kMaxBlocksPerProcessor : headDim <= 128 ? 2 : 1;
}

// Partial result of a group's heads over some of their keys.
struct Partial {
  float* sums;    // [heads, headDim], weighted sums of values
  float2* stats;  // [heads]: maximum score, sum of weights
};

// A warp's ring of strips of the cache's type C in shared memory. Strips in fp8 are converted, one
// at a time, to a strip of T behind the ring. After the last key it holds the warp's results.
template <class T, class C, int kHeadDim>
struct Ring {
  static constexpr int kStages = kHeadDim > 128 ? 2 : kIsFloat8<C> ? 4 : 3;
  static constexpr uint32_t kTileBytes = kStrip * kTileStride<kHeadDim> * sizeof(T);
  static constexpr uint32_t kStripBytes =
      kIsFloat8<C> ? kFloat8Bytes<kHeadDim, kStrip> : kTileBytes;
  static constexpr uint32_t kBytes =
      kStages * 2 * kStripBytes + (kIsFloat8<C> ? 2 * kTileBytes : 0);
  static_assert(kBytes >= kHeads * (kHeadDim * sizeof(float) + sizeof(float2)));

  unsigned char* memory;

  __device__ Ring(unsigned char* shared, int warp) : memory(shared + warp * kBytes) {}

  __device__ uint32_t keys(int stage) const {
    return sharedAddress(memory) + static_cast<uint32_t>(stage) * 2 * kStripBytes;
  }
  __device__ uint32_t values(int stage) const { return keys(stage) + kStripBytes; }

  // The strip of T to compute with.
  __device__ uint32_t keyTile(int stage) const { return keys(kIsFloat8<C> ? kStages : stage); }
  __device__ uint32_t valueTile(int stage) const { return keyTile(stage) + kTileBytes; }

  __device__ Partial results() const {
    auto* sums = reinterpret_cast<float*>(memory);
    return {sums, reinterpret_cast<float2*>(sums + kHeads * kHeadDim)};
  }
};

// Scratch of a launch. A block shares at most two groups with other blocks: one that started before
// it (partial 2 * block) and one that continues after it (2 * block + 1).
struct Workspace {
  // [blocks]: arrivals at the group that continues after the block; zero between launches.
  uint32_t* arrivals;
  float2* stats;  // [2 * blocks, heads]
  float* sums;    // [2 * blocks, heads, headDim]
  int32_t heads;

  // `arrivals` comes first and has the same length for all shapes, so every launch leaves it zero.
  Workspace(void* memory, int32_t numMultiprocessors, int32_t numHeads) : heads(numHeads) {
    auto* bytes = static_cast<unsigned char*>(memory);
    arrivals = reinterpret_cast<uint32_t*>(bytes);
    bytes += arrivalBytes(numMultiprocessors);
    stats = reinterpret_cast<float2*>(bytes);
    bytes += statBytes(numMultiprocessors, numHeads);
    sums = reinterpret_cast<float*>(bytes);
  }

  static size_t bytes(int32_t numMultiprocessors, int32_t heads, int32_t headDim) {
    return arrivalBytes(numMultiprocessors) + statBytes(numMultiprocessors, heads) +
           sizeof(float) * numPartials(numMultiprocessors, heads) * static_cast<size_t>(headDim);
  }

  template <int kHeadDim>
  __device__ Partial partial(int32_t index) const {
    const int64_t first = static_cast<int64_t>(index) * heads;
    return {sums + first * kHeadDim, stats + first};
  }

 private:
  static size_t maxBlocks(int32_t numMultiprocessors) {
    return static_cast<size_t>(kMaxBlocksPerProcessor * numMultiprocessors);
  }
  static size_t numPartials(int32_t numMultiprocessors, int32_t heads) {
    return 2 * maxBlocks(numMultiprocessors) * static_cast<size_t>(heads);
  }
  static size_t aligned(size_t bytes) { return ceilDiv(bytes, size_t{256}) * 256; }
  static size_t arrivalBytes(int32_t numMultiprocessors) {
    return aligned(sizeof(uint32_t) * maxBlocks(numMultiprocessors));
  }
  static size_t statBytes(int32_t numMultiprocessors, int32_t heads) {
    return aligned(sizeof(float2) * numPartials(numMultiprocessors, heads));
  }
};

// A run of tiles of one group of query heads.
struct Run {
  int32_t row;
  int32_t kvHead;
  int32_t head;       // first head of the group
  int32_t heads;      // up to kHeads
  int32_t firstTile;  // tiles [firstTile, firstTile + count) of `tiles`
  int32_t count;
  int32_t tiles;
};

// 0 for a row with several queries, which this kernel skips.
__device__ int32_t numTiles(const AttentionArgs& args, int32_t row) {
  const int32_t position = args.numComputedTokens[row];
  const int32_t tiles = position / kTile - args.firstKey(position) / kTile + 1;
  return args.slots[row] >= 0 && args.numQueries(row) == 1 ? tiles : 0;
}

// Processes one warp's strips of the run and leaves its results in the ring. `queries`: shared
// memory for the block's queries [kHeads, headDim].
template <class T, class C, int kHeadDim>
__device__ void attend(const AttentionArgs& args, const Run& run, const Ring<T, C, kHeadDim>& ring,
                       uint32_t queries) {
  constexpr int kStages = Ring<T, C, kHeadDim>::kStages;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t position = args.numComputedTokens[run.row];
  const int32_t begin = args.firstKey(position);
  const int32_t end = position + 1;
  const int32_t firstKey = (begin / kTile + run.firstTile) * kTile + warp * kStrip;

  const int32_t* blocks = args.blocksOf(args.slots[run.row]);
  struct Key {  // this lane's of a strip
    int32_t index;
    int32_t block;  // not used before the copy, so that nothing waits for its load
  };
  const auto keyOf = [&](int32_t strip) -> Key {
    const int32_t index = firstKey + strip * kTile + lane % kStrip;
    return {index, blocks[args.blockIndex(min(index, end - 1))]};
  };
  const auto copy = [&](int stage, const Key& key) {
    const bool exists = key.index >= begin && key.index < end;
    const int32_t cacheSlot = exists ? args.cacheSlotIn(key.block, key.index) : -1;
    if constexpr (kIsFloat8<C>) {
      copyFloat8<kHeadDim, kStrip>(ring.keys(stage), ring.values(stage), args, run.kvHead,
                                   cacheSlot);
    } else {
      copyKeysAndValues<T, kHeadDim, kStrip>(ring.keys(stage), ring.values(stage), args, run.kvHead,
                                             cacheSlot);
    }
  };
  const T* from = static_cast<const T*>(args.qkv) + args.queryStarts[run.row] * args.qkvWidth +
                  static_cast<int64_t>(run.head) * kHeadDim;
  Key keys[kStages];
#pragma unroll
  for (int i = 0; i < kStages; ++i) keys[i] = keyOf(i);
  waitForPreviousAlone();  // for the queries and this step's keys and values
  copyQueries<kHeadDim, kHeads, kThreads>(queries, run.heads,
                                          [&](int32_t i) { return from + i * kHeadDim; });
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < run.count) copy(i, keys[i]);
    commitCopies();
  }
  Key nextKey = keys[kStages - 1];

  waitForCopies<kStages - 2>();
  __syncthreads();  // the queries are loaded

  QueryRows<T, kHeadDim, 1> rows;
  int stage = 0;
  for (int32_t i = 0; i < run.count; ++i) {
    waitForCopies<kStages - 2>();
    __syncwarp();  // this strip is loaded; all lanes are done with the previous one
    const int32_t next = i + kStages - 1;
    if (next < run.count) copy(stage == 0 ? kStages - 1 : stage - 1, nextKey);
    commitCopies();
    nextKey = keyOf(next + 1);
    if constexpr (kIsFloat8<C>) {
      convertFloat8<T, kHeadDim, kStrip>(ring.keys(stage), ring.keyTile(stage));
      convertFloat8<T, kHeadDim, kStrip>(ring.values(stage), ring.valueTile(stage));
      __syncwarp();
    }

    float scores[1][kStrip / 8][4];
    rows.template computeScores<kStrip>(scores, queries + matrixOffset<kHeadDim>(),
                                        ring.keyTile(stage) + keysOffset<kHeadDim>());
    rows.template capScores<kStrip>(scores, args);
    const int32_t firstOfStrip = firstKey + i * kTile;
    if (firstOfStrip < begin || firstOfStrip + kStrip > end) {
#pragma unroll
      for (int n = 0; n < kStrip / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int32_t key = firstOfStrip + n * 8 + lane % 4 * 2 + c % 2;
          if (key < begin || key >= end) scores[0][n][c] = kMasked;
        }
      }
    }
    rows.template scoresToWeights<kStrip>(scores, args.scale);
    rows.template addValues<kStrip>(scores, ring.valueTile(stage) + matrixOffset<kHeadDim>());
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }

  rows.finishSums();
  __syncwarp();  // all lanes are done with the ring
  const Partial results = ring.results();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = lane / 4 + h * 8;
    if (row >= run.heads) continue;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      *reinterpret_cast<float2*>(results.sums + row * kHeadDim + n * 8 + lane % 4 * 2) = {
          rows.out[0][n][2 * h], rows.out[0][n][2 * h + 1]};
    }
    if (lane % 4 == 0) results.stats[row] = {rows.maximum[0][h], rows.sum[0][h]};
  }
}

// Merges `count` partial results in order and calls store(head, element, sums, stats) for each
// group of four elements, starting at `element`, of [heads, headDim].
template <int kHeadDim, class PartialOf, class Store>
__device__ void merge(int32_t heads, int32_t count, float scale, PartialOf partialOf, Store store) {
  for (int32_t element = static_cast<int32_t>(threadIdx.x) * 4; element < heads * kHeadDim;
       element += kThreads * 4) {
    const int32_t head = element / kHeadDim;
    float2 stats{kMasked, 0.0f};
    for (int32_t i = 0; i < count; ++i) {
      stats.x = fmaxf(stats.x, partialOf(i).stats[head].x);
    }
    float4 sums{0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int32_t i = 0; i < count; ++i) {
      const Partial partial = partialOf(i);
      const float2 one = partial.stats[head];
      const float4 add = *reinterpret_cast<const float4*>(partial.sums + element);
      const float factor = powerOf2((one.x - stats.x) * scale);
      stats.y = fmaf(one.y, factor, stats.y);
      sums.x = fmaf(add.x, factor, sums.x);
      sums.y = fmaf(add.y, factor, sums.y);
      sums.z = fmaf(add.z, factor, sums.z);
      sums.w = fmaf(add.w, factor, sums.w);
    }
    store(head, element, sums, stats);
  }
}

// Grid: multiprocessors * blocksPerProcessor(headDim); 128 threads; shared memory: 4 rings and the
// queries (106 KiB for heads of 128). Reads 2 * headDim * numKvHeads elements per key and is bound
// by those bytes: 4.5 TB/s needs about 32 KB in flight per multiprocessor, and two strips for each
// of 8 warps are 128 KB. The products use an eighth of the tensor cores' time, for any group.
// From a cache in fp8 half the bytes.
template <class T, class C, int kHeadDim>
__global__ void __launch_bounds__(kThreads, blocksPerProcessor(kHeadDim))
    decodeKernel(const AttentionArgs args, const Workspace workspace) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ bool isLast;
  const int32_t groupParts = ceilDiv(args.group, kHeads);
  const int32_t groups = args.numKvHeads * groupParts;
  const auto unitsOf = [&](int32_t row) { return numTiles(args, row) * groups; };
  const RowUnits<kThreads, decltype(unitsOf)> units(args.numRows, unitsOf);
  const int32_t share = max(ceilDiv(units.total(), static_cast<int32_t>(gridDim.x)), kMinTiles);
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t begin = block * share;
  const int32_t end = min(begin + share, units.total());
  if (begin >= end) return waitForPreviousAlone();

  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  auto [row, unitOfRow] = units.find(begin);
  for (int32_t unit = begin; unit < end;) {
    const int32_t tiles = numTiles(args, row);
    if (unitOfRow == tiles * groups) {
      ++row;
      unitOfRow = 0;
      continue;
    }
    const int32_t group = unitOfRow / tiles;
    const int32_t firstTile = unitOfRow % tiles;
    const int32_t kvHead = group / groupParts;
    const int32_t firstHead = group % groupParts * kHeads;
    const Run run{row,
                  kvHead,
                  kvHead * args.group + firstHead,
                  min(args.group - firstHead, kHeads),
                  firstTile,
                  min(tiles - firstTile, end - unit),
                  tiles};
    attend(args, run, Ring<T, C, kHeadDim>(shared, warp),
           sharedAddress(shared + kWarps * Ring<T, C, kHeadDim>::kBytes));
    __syncthreads();

    const auto ofWarp = [&](int32_t i) { return Ring<T, C, kHeadDim>(shared, i).results(); };
    T* out = static_cast<T*>(args.out) +
             (static_cast<int64_t>(args.queryStarts[row]) * args.numHeads + run.head) * kHeadDim;
    const auto toOut = [&](int32_t head, int32_t element, const float4& sums, const float2& stats) {
      const float sink = args.template sinkWeight<T>(run.head + head, stats.x);
      const float factor = args.template sumFactor<C>(stats.y + sink);
      const float scaled[4] = {sums.x * factor, sums.y * factor, sums.z * factor, sums.w * factor};
      storeNarrowed<4>(out + element, scaled);
    };
    if (run.count == tiles) {
      merge<kHeadDim>(run.heads, kWarps, args.scale, ofWarp, toOut);
    } else {
      const Partial to = workspace.partial<kHeadDim>(2 * block + (firstTile == 0 ? 1 : 0));
      const auto toPartial = [&](int32_t head, int32_t element, const float4& sums,
                                 const float2& stats) {
        *reinterpret_cast<float4*>(to.sums + element) = sums;
        if (element % kHeadDim == 0) to.stats[head] = stats;
      };
      merge<kHeadDim>(run.heads, kWarps, args.scale, ofWarp, toPartial);

      const int32_t firstUnit = unit - firstTile;  // within the group
      const int32_t firstBlock = firstUnit / share;
      const int32_t numBlocks = (firstUnit + tiles - 1) / share - firstBlock + 1;
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        // Wraps to zero after numBlocks - 1.
        const auto last = static_cast<uint32_t>(numBlocks - 1);
        isLast = atomicInc(workspace.arrivals + firstBlock, last) == last;
      }
      __syncthreads();
      if (isLast) {
        __threadfence();
        const auto ofBlock = [&](int32_t i) {
          return workspace.partial<kHeadDim>(2 * (firstBlock + i) + (i == 0 ? 1 : 0));
        };
        merge<kHeadDim>(run.heads, numBlocks, args.scale, ofBlock, toOut);
      }
    }
    __syncthreads();  // the rings are free again
    unit += run.count;
    unitOfRow += run.count;
  }
}

template <class T, class C, int kHeadDim>
constexpr size_t kSharedBytes =
    kWarps * Ring<T, C, kHeadDim>::kBytes + kHeads * kTileStride<kHeadDim> * sizeof(T);

}  // namespace

size_t attentionWorkspaceBytes(const AttentionShape& shape, int32_t numMultiprocessors) {
  const int32_t group = shape.numHeads / shape.numKvHeads;
  return Workspace::bytes(numMultiprocessors, std::min(group, kHeads), shape.headDim);
}

size_t attentionDecodeSharedBytes(DType type, int32_t headDim) {
  size_t bytes = 0;
  withTensorCores(type, headDim,
                  [&]<class T, int kHeadDim>() { bytes = kSharedBytes<T, T, kHeadDim>; });
  return bytes;
}

void attentionDecode(const AttentionArgs& args, DType type, bool isFloat8, void* workspace,
                     int32_t numMultiprocessors, cudaStream_t stream) {
  const Workspace scratch(workspace, numMultiprocessors, std::min(args.group, kHeads));
  withTensorCores(type, args.headDim, [&]<class T, int kHeadDim>() {
    withCacheOf<T>(isFloat8, [&]<class C>() {
      constexpr size_t kBytes = kSharedBytes<T, C, kHeadDim>;
      static_assert(kBytes <= kSharedBytes<T, T, kHeadDim>);
      const auto kernel = decodeKernel<T, C, kHeadDim>;
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
            "cudaFuncSetAttribute of attentionDecode");
      const int32_t blocks = blocksPerProcessor(kHeadDim) * numMultiprocessors;
      launch(kernel, static_cast<unsigned>(blocks), kThreads, kBytes, stream, args, scratch);
      check(cudaGetLastError(), "attentionDecode");
    });
  });
}

}  // namespace uniproc::cuda
